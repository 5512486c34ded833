// @ts-check
// The page that starts a run: it holds the flow, has the server check it after each change, and creates the run.
import "./ry-form.js";
import { showToast } from "./live.js";

/** @typedef {{ path: string, message: string }} Problem */
/** @typedef {import("./ry-form.js").Form} Form */

const CHECK_AFTER_MS = 300;
const PARTS = { model: "ModelSettings", dataset: "DatasetSettings", prompt: "SystemPromptSettings", settings: "FlowSettings" };
const BLOCKS = /** @type {const} */ ([["dataset", "vi-dataset"], ["prompt", "vi-system-prompt"], ["model", "vi-model"]]);
const FIRST = [
  "model/hyperparameters/epochs", "model/hyperparameters/batchSize", "model/hyperparameters/learningRate",
  "model/training/mode", "prompt/systemPrompt",
];
const WITHOUT = ["dataset/datasetId", "dataset/datasetVersion", "dataset/projectKind", "model/architecture/weights", "settings/flow", "settings/resources"];
/** Names of the plan that are shown first, as people say them. */
const NAMES = /** @type {Record<string, string>} */ ({
  dataset: "Dataset", task: "Goal", weights: "Base model", images: "Images", parameters: "Parameters", trainingMode: "Training",
  epochs: "Epochs", trainingSamples: "Training samples", totalSteps: "Steps", batchSize: "Batch size",
  microBatchSize: "Micro-batch", learningRate: "Learning rate", optimizer: "Optimizer",
  gradientCheckpointing: "Gradient checkpointing", seed: "Seed",
});

/** Fields whose default depends on the others, with the plan's name of it. */
const DEFAULTS = { "model/hyperparameters/epochs": "epochs", "model/hyperparameters/batchSize": "batchSize", "model/hyperparameters/learningRate": "learningRate", "model/training/mode": "trainingMode" };

/** @template {Element} T @param {string} selector @returns {T} */
const find = (selector) => /** @type {T} */ (document.querySelector(selector));
const page = /** @type {HTMLElement} */ (find("#new-run"));
const form = /** @type {Form} */ (find("ry-form"));
const name = /** @type {HTMLInputElement} */ (find("#name"));
const dataset = /** @type {HTMLSelectElement} */ (find("#dataset"));
const goal = /** @type {HTMLSelectElement} */ (find("#goal"));
const model = /** @type {HTMLSelectElement} */ (find("#model"));
const weights = /** @type {HTMLInputElement} */ (find("#weights"));
const start = /** @type {HTMLButtonElement} */ (find("#start"));
const org = document.body.dataset.org ?? "";
const given = JSON.parse(page.dataset.flow ?? "{}");
const runId = makeId();

/** @returns {string} */
function makeId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The settings of the flow by part. @param {any} flow @returns {Record<string, any>} */
function split(flow) {
  /** @type {Record<string, any>} */ const parts = { dataset: {}, prompt: {}, model: {}, settings: flow.settings ?? {} };
  for (const { block, settings } of flow.blocks ?? []) {
    const part = block.includes("system-prompt") ? "prompt" : block.includes("dataset") ? "dataset" : "model";
    parts[part] = settings ?? {};
  }
  return parts;
}

/** @param {any} value */
const isEmpty = (value) => !Object.keys(value ?? {}).length;

/** The flow as the server takes it: only what differs from the defaults. @returns {any} */
function build() {
  const { settings } = form.value;
  /** @type {any} */ const flow = { name: name.value.trim() || name.placeholder, schema: "v1", blocks: [] };
  for (const [part, block] of BLOCKS) {
    if (!isEmpty(form.value[part])) flow.blocks.push({ block, settings: form.value[part] });
  }
  if (!isEmpty(settings)) flow.settings = settings;
  if (given.tolerations && !isEmpty(given.tolerations)) flow.tolerations = given.tolerations;
  return flow;
}

/** The path of a field from a JSON pointer into the flow. @param {string} pointer @param {any} flow */
function locate(pointer, flow) {
  const found = /^(?:\/spec)?(?:\/flow)?\/blocks\/(\d+)\/settings\/(.*)$/.exec(pointer);
  if (!found) return pointer.replace(/^\/(?:spec\/)?(?:flow\/)?/, "");
  const block = flow.blocks[Number(found[1])]?.block;
  return `${BLOCKS.find(([, one]) => one === block)?.[0] ?? ""}/${found[2]}`;
}

/** @param {Problem[]} problems @param {any} flow */
function showProblems(problems, flow) {
  const located = problems.map(({ path, message }) => ({ path: locate(path, flow), message: shorten(message, path) }));
  const chosen = { "dataset/datasetId": "#dataset-problem", trainingProject: "#dataset-problem", "dataset/projectKind": "#goal-problem", "model/architecture/weights": "#model-problem", name: "#name-problem" };
  for (const box of Object.values(chosen)) find(box).textContent = "";
  const others = form.show(located).filter(({ path, message }) => {
    const box = chosen[/** @type {keyof typeof chosen} */ (path)];
    if (box) find(box).textContent = message;
    return !box;
  });
  const list = find("#problems");
  list.replaceChildren(...others.map(({ message }) => Object.assign(document.createElement("li"), { textContent: message })));
  list.toggleAttribute("hidden", !others.length);
}

/** Next to its field, a message need not begin with the path. @param {string} message @param {string} path */
function shorten(message, path) {
  const text = path && message.startsWith(path) ? message.slice(path.length).replace(/^[\s:]+/, "") : message;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

let asked = 0;
let timer = 0;
/** @type {AbortController | undefined} */ let checking;

function changed() {
  showCode();
  if (page.dataset.mayStart !== "true") { // a check needs the role of a start
    find("#verdict").textContent = "Read only";
    return;
  }
  find("#verdict").textContent = "Checking…";
  clearTimeout(timer);
  timer = window.setTimeout(check, CHECK_AFTER_MS);
}

async function check() {
  const mine = ++asked, flow = build();
  checking?.abort();
  checking = new AbortController();
  try {
    const response = await fetch(`/workspaces/${org}/flows:check`, {
      method: "POST",
      body: JSON.stringify({ spec: flow }),
      headers: { "content-type": "application/json" },
      signal: checking.signal,
    });
    const found = await response.json();
    if (mine !== asked) return;
    if (!response.ok) throw new Error(found.message);
    showProblems(found.problems, flow);
    showPlan(found.plan);
    showFindings(found.findings);
    showMemory(found.memory);
    const count = found.problems.length;
    find("#verdict").textContent = count ? `✗ ${count === 1 ? "1 problem" : `${count} problems`}` : "✓ No problems";
    find("#verdict").className = `badge ${count ? "failed" : "succeeded"}`;
    start.disabled = count > 0 || page.dataset.mayStart !== "true";
  } catch (error) {
    if (mine !== asked || (error instanceof DOMException && error.name === "AbortError")) return;
    find("#verdict").textContent = "Could not check";
    find("#verdict").className = "badge";
  }
}

/** @param {unknown} value */
const format = (value) => (typeof value === "number" && Number.isInteger(value) ? value.toLocaleString("en-US") : typeof value === "boolean" ? (value ? "yes" : "no") : String(value));

/** @param {Record<string, { value: unknown, reason: string }> | null} plan */
function showPlan(plan) {
  const box = find("#plan");
  box.toggleAttribute("hidden", !plan);
  if (!plan) return;
  for (const [path, key] of Object.entries(DEFAULTS)) {
    if (form.get(path) === undefined) form.hint(path, format(plan[key].value));
  }
  plan.task.value = [...goal.options].find((option) => option.value === plan.task.value)?.text ?? plan.task.value;
  find("#plan-rows").replaceChildren(...Object.entries(NAMES).filter(([key]) => key in plan).map(([key, label]) => {
    const row = document.createElement("tr");
    for (const [tag, text, className] of [["th", label, ""], ["td", format(plan[key].value), ""], ["td", plan[key].reason === "flow" ? "" : plan[key].reason, "faint"]]) {
      const cell = row.appendChild(document.createElement(tag));
      cell.textContent = text;
      cell.className = className;
      if (tag === "th") cell.setAttribute("scope", "row");
    }
    return row;
  }));
}

/** @param {{ message: string, suggestions: { text: string, setting: string | null, value: unknown }[] }[]} findings */
function showFindings(findings) {
  find("#findings").replaceChildren(...findings.map(({ message, suggestions }) => {
    const line = notice("warn", `${message}.`);
    line.append(...suggestions.map(({ text }) => Object.assign(document.createElement("small"), { textContent: sentence(text) })));
    return line;
  }));
}

/** @param {{ items: any[] } | null} memory */
function showMemory(memory) {
  const box = find("#memory");
  box.replaceChildren();
  if (!memory) return;
  if (!memory.items.length) {
    box.append(notice("warn", "No machine is connected. The run waits until one is; runyard up starts one."));
  }
  for (const { accelerator, configurations } of memory.items) {
    const { action, reason } = configurations[0], label = accelerator.spec.labels.accelerator ?? accelerator.trainingAcceleratorId;
    const [kind, shape, text] = { Allow: ["ok", "✓", "fits"], Deny: ["bad", "✗", "does not fit"] }[String(action)] ?? ["warn", "!", "may not fit"];
    const line = notice(kind, `${shape} The run ${text} on ${label}.`);
    line.append(Object.assign(document.createElement("small"), { textContent: sentence(reason ?? "") }));
    box.append(line);
  }
}

/** @param {string} text */
const sentence = (text) => text && `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/** @param {string} kind @param {string} text */
function notice(kind, text) {
  return Object.assign(document.createElement("p"), { className: `notice ${kind}`, textContent: text });
}

// The same as Python, and as a command.

/** @param {any} value @param {number} depth @returns {string} */
function toPython(value, depth = 1) {
  const pad = "    ".repeat(depth), end = "    ".repeat(depth - 1);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => `${pad}${toPython(one, depth + 1)},\n`).join("")}${end}]` : "[]";
  if (typeof value === "object") {
    return `{\n${Object.entries(value).map(([key, one]) => `${pad}${JSON.stringify(key)}: ${toPython(one, depth + 1)},\n`).join("")}${end}}`;
  }
  return JSON.stringify(value);
}

/** @param {string} text */
const quote = (text) => (/^[\w.,:=@/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** @param {any} value @param {string} path @returns {[string, any][]} */
function flatten(value, path) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[path, value]];
  return Object.entries(value).flatMap(([key, one]) => flatten(one, `${path}.${key}`));
}

/** @param {any} flow */
function toCommand(flow) {
  const sets = [["name", flow.name], ...flow.blocks.flatMap((/** @type {any} */ one) => flatten(one.settings, one.block)), ...flatten(flow.settings ?? {}, "settings")];
  return ["runyard runs create", ...sets.map(([path, value]) => `--set ${quote(`${path}=${typeof value === "string" ? value : JSON.stringify(value)}`)}`)].join(" \\\n    ");
}

function showCode() {
  const flow = build();
  find("#as-python").textContent = `import vi\n\nclient = vi.Client()\nrun = client.runs.create(\n    flow=${toPython(flow, 2)}\n)\nrun = client.runs.wait(run.run_id)\n`;
  find("#as-command").textContent = toCommand(flow);
}

// The fields above the form.

function chooseModel() {
  const isOther = model.value === "other";
  find("#weights-field").toggleAttribute("hidden", !isOther);
  const text = isOther ? weights.value.trim() : model.value;
  form.set("model/architecture/weights", text || undefined);
}

function nameRun() {
  const data = dataset.selectedOptions[0]?.dataset.name ?? "Run";
  const base = model.value === "other" ? weights.value.trim().split("/").at(-1) : model.selectedOptions[0]?.dataset.name;
  name.placeholder = [data, base].filter(Boolean).join(" ").slice(0, 200);
}

await form.open({ parts: PARTS, first: FIRST, without: WITHOUT, value: split(given) });
// What was typed and chosen before the form was complete is kept.
name.value ||= given.name ?? "";
if (goal.value) form.set("dataset/projectKind", goal.value);
else goal.value = form.get("dataset/projectKind") ?? "";
form.addEventListener("changed", changed);
dataset.addEventListener("change", () => {
  form.set("dataset/datasetVersion", undefined);
  form.set("dataset/datasetId", dataset.value || undefined);
  nameRun();
  changed();
});
goal.addEventListener("change", () => form.set("dataset/projectKind", goal.value || undefined));
for (const field of [model, weights]) {
  field.addEventListener("input", () => {
    chooseModel();
    nameRun();
    changed();
  });
}
name.addEventListener("input", changed);
/** @param {HTMLSelectElement} field */
const isTouched = (field) => field.querySelector("[selected]") && !field.selectedOptions[0]?.defaultSelected;
if (isTouched(dataset)) form.set("dataset/datasetId", dataset.value);
if (isTouched(model)) chooseModel();
if (model.value === "other") find("#weights-field").toggleAttribute("hidden", false);
nameRun();
changed();

find("#start-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const flow = build();
  start.disabled = true;
  start.textContent = "Starting…";
  try {
    // The id is chosen once, so that a repeated request starts no second run.
    const response = await fetch(`/workspaces/${org}/runs/${runId}`, {
      method: "PUT",
      body: JSON.stringify({ spec: { flow } }),
      headers: { "content-type": "application/json" },
    });
    if (response.ok) {
      location.assign(`/ui/runs/${runId}`);
      return;
    }
    const problem = await response.json();
    if (problem.problems?.length) showProblems(problem.problems, flow);
    else showToast(problem.message);
  } catch {
    showToast("The server does not answer. Nothing was started; your settings are kept.");
  }
  start.disabled = false;
  start.textContent = "Start run";
});
performance.mark("form-ready");
