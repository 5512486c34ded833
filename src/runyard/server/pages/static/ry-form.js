// @ts-check
// <ry-form schema="/workspaces/ORG/flowSchemas/v1">: a form for JSON Schemas of the shapes that flows use.
//
// form.open({ parts, first, without, value }) builds it; paths are "model/hyperparameters/epochs", where the
// first word names a part. It holds only what differs from the defaults, in form.value, and dispatches
// "changed" with { path, value }. form.show(problems) puts each problem at its field.

/** @typedef {Record<string, any>} Schema */
/** @typedef {{ path: string, message: string }} Problem */
/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Field */

const LONG_TEXT = 2000;

export class Form extends HTMLElement {
  /** @type {Schema} */ #root = {};
  /** @type {Record<string, any>} */ value = {};
  /** @type {Set<string>} */ #without = new Set();
  /** @type {Map<string, HTMLElement>} */ #rows = new Map();

  /**
   * Build the form.
   * @param {{ parts: Record<string, string>, first: string[], without: string[], value: Record<string, any> }} options
   */
  async open({ parts, first, without, value }) {
    const response = await fetch(this.getAttribute("schema") ?? "");
    if (!response.ok) throw new Error(`the schema could not be read: ${response.status}`);
    this.#root = await response.json();
    this.value = value;
    this.#without = new Set([...without, ...first]);
    const featured = document.createElement("div");
    featured.className = "featured";
    for (const path of first) featured.append(this.#field(this.#find(parts, path), path));
    const rest = document.createElement("details");
    rest.className = "rest";
    const summary = rest.appendChild(document.createElement("summary"));
    summary.textContent = "All settings";
    rest.append(this.#search(rest));
    for (const [part, name] of Object.entries(parts)) {
      rest.append(...this.#groups(part, this.#resolve({ $ref: name }), part));
    }
    this.replaceChildren(featured, rest);
    this.#count();
  }

  /** @param {string} path */
  get(path) {
    /** @type {any} */ let found = this.value;
    for (const name of path.split("/")) found = found?.[name];
    return found;
  }

  /**
   * Set a value, or remove it with undefined, and update its field.
   * @param {string} path @param {unknown} value
   */
  set(path, value) {
    const names = path.split("/"), last = names.pop() ?? "";
    /** @type {any[]} */ const holders = [this.value];
    for (const name of names) holders.push((holders.at(-1)[name] ??= {}));
    if (value === undefined) delete holders.at(-1)[last];
    else holders.at(-1)[last] = value;
    // An object that has become empty is left out.
    for (let at = names.length; at > 1 && !Object.keys(holders[at]).length; at--) delete holders[at - 1][names[at - 1]];
    const input = this.#rows.get(path)?.querySelector("input, select, textarea");
    if (input && input !== document.activeElement) write(/** @type {Field} */ (input), value);
    this.#mark(path);
    this.dispatchEvent(new CustomEvent("changed", { bubbles: true, detail: { path, value } }));
  }

  /**
   * Show problems at their fields; return those without one.
   * @param {Problem[]} problems @returns {Problem[]}
   */
  show(problems) {
    /** @type {Map<string, string>} */ const byPath = new Map();
    const others = problems.filter(({ path, message }) => {
      if (!this.#rows.has(path) || byPath.has(path)) return !this.#rows.has(path);
      byPath.set(path, message);
      return false;
    });
    for (const [path, row] of this.#rows) {
      const message = byPath.get(path) ?? "", box = row.querySelector(".problem");
      if (box && box.textContent !== message) box.textContent = message;
      const input = row.querySelector("input, select, textarea");
      if (message) {
        input?.setAttribute("aria-invalid", "true");
        for (let outer = row.closest("details"); outer; outer = outer.parentElement?.closest("details") ?? null) outer.open = true;
      } else input?.removeAttribute("aria-invalid");
    }
    return others;
  }

  /**
   * Show the default of a field as it is with the other settings.
   * @param {string} path @param {string} text
   */
  hint(path, text) {
    const input = this.#rows.get(path)?.querySelector("input, select");
    if (input instanceof HTMLInputElement) input.placeholder = `default: ${text}`;
    else if (input instanceof HTMLSelectElement) input.options[0].text = `default: ${text}`;
  }

  /** @param {Schema} schema @returns {Schema} */
  #resolve(schema) {
    if (schema.$ref) {
      const { $ref, ...further } = schema;
      return this.#resolve({ ...this.#root.$defs[$ref.split("/").at(-1)], ...further });
    }
    const inner = (schema.anyOf ?? []).filter((/** @type {Schema} */ one) => one.type !== "null");
    if (inner.length !== 1) return schema;
    const { anyOf, ...further } = schema;
    return this.#resolve({ ...inner[0], ...further });
  }

  /** @param {Record<string, string>} parts @param {string} path @returns {Schema} */
  #find(parts, path) {
    const [part, ...names] = path.split("/");
    let schema = this.#resolve({ $ref: parts[part] });
    for (const name of names) schema = this.#resolve(schema.properties[name]);
    return schema;
  }

  /** Fields of an object, then one closed group for each object inside it.
   * @param {string} title @param {Schema} schema @param {string} path @returns {HTMLElement[]} */
  #groups(title, schema, path) {
    const group = document.createElement("details"), inner = [];
    const summary = group.appendChild(document.createElement("summary"));
    summary.textContent = words(title);
    for (const [name, given] of Object.entries(schema.properties ?? {})) {
      const at = `${path}/${name}`, one = this.#resolve(given);
      if (this.#without.has(at)) continue;
      if (one.properties) inner.push(...this.#groups(name, one, at));
      else group.append(this.#field(one, at));
    }
    if (path.includes("/")) return group.childElementCount > 1 ? [group, ...inner] : inner;
    group.append(...inner);
    return group.childElementCount > 1 ? [group] : [];
  }

  /** @param {Schema} schema @param {string} path */
  #field(schema, path) {
    const row = document.createElement("div"), id = `field-${path.replaceAll("/", "-")}`;
    row.className = "field";
    const head = row.appendChild(document.createElement("div")), label = head.appendChild(document.createElement("label"));
    head.className = "fieldhead";
    label.htmlFor = id;
    label.textContent = words(path.split("/").at(-1) ?? "");
    const reset = head.appendChild(document.createElement("button"));
    reset.type = "button";
    reset.className = "quiet reset";
    reset.textContent = "↺ default";
    reset.setAttribute("aria-label", `Reset ${label.textContent}`);
    reset.addEventListener("click", () => this.set(path, undefined));
    const input = row.appendChild(buildInput(schema));
    input.id = id;
    write(input, this.get(path));
    const help = row.appendChild(document.createElement("small")), problem = row.appendChild(document.createElement("p"));
    help.id = `${id}-help`;
    help.textContent = capitalize((schema.description ?? "").replace(/ \(default: .*\)$/, ""));
    problem.id = `${id}-problem`;
    problem.className = "problem";
    input.setAttribute("aria-describedby", `${help.id} ${problem.id}`);
    const event = input instanceof HTMLSelectElement ? "change" : "input";
    input.addEventListener(event, () => this.set(path, read(schema, input)));
    this.#rows.set(path, row);
    this.#mark(path);
    return row;
  }

  /** @param {HTMLDetailsElement} rest */
  #search(rest) {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "Search settings";
    input.setAttribute("aria-label", "Search settings");
    input.addEventListener("input", () => {
      const text = input.value.trim().toLowerCase();
      for (const group of [...rest.querySelectorAll("details")].reverse()) {
        const found = [...group.children].map((child) => {
          if (child.tagName === "SUMMARY") return false;
          if (child.classList.contains("field")) child.toggleAttribute("hidden", Boolean(text) && !child.textContent?.toLowerCase().includes(text));
          return !child.hasAttribute("hidden");
        });
        group.hidden = !found.includes(true);
        group.open = Boolean(text) && !group.hidden;
      }
    });
    return input;
  }

  /** @param {string} path */
  #mark(path) {
    this.#rows.get(path)?.classList.toggle("set", this.get(path) !== undefined);
    this.#count();
  }

  #count() {
    const summary = this.querySelector(".rest > summary");
    if (!summary) return;
    const count = this.querySelectorAll(".rest .field.set").length;
    summary.textContent = count ? `All settings (${count} changed)` : "All settings";
  }
}
customElements.define("ry-form", Form);

/** @param {string} name */
function words(name) {
  return capitalize(name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").replaceAll("_", " ").toLowerCase());
}

/** @param {string} text */
const capitalize = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The types and words that a schema accepts. @param {Schema} schema */
function list(schema) {
  const all = [schema, ...(schema.anyOf ?? []).flatMap((/** @type {Schema} */ one) => [one, ...(one.anyOf ?? [])])];
  return { types: new Set(all.map((one) => one.type).filter(Boolean)), words: all.flatMap((one) => one.enum ?? []), all };
}

/** @param {Schema} schema @returns {Field} */
function buildInput(schema) {
  const { types, words: choices, all } = list(schema);
  const isNumber = types.has("integer") || types.has("number");
  const stated = /\(default: (.*)\)$/.exec(schema.description ?? "")?.[1];
  const standard = schema.default == null ? stated ?? "none" : typeof schema.default === "object" ? JSON.stringify(schema.default) : String(schema.default);
  if (types.has("boolean") || (choices.length && !isNumber && !types.has("array") && !all.some((one) => one.properties || one.$ref))) {
    const select = document.createElement("select");
    select.add(new Option(`default: ${standard}`, ""));
    for (const choice of [...choices, ...(types.has("boolean") ? [true, false] : [])]) {
      select.add(new Option({ true: "yes", false: "no" }[String(choice)] ?? String(choice), JSON.stringify(choice)));
    }
    return select;
  }
  if ((schema.maxLength ?? 0) > LONG_TEXT) {
    const area = document.createElement("textarea");
    area.rows = 3;
    area.placeholder = `default: ${standard}`;
    return area;
  }
  const input = document.createElement("input");
  const number = all.find((one) => one.type === "integer" || one.type === "number");
  if (isNumber && number && !choices.length && types.size <= 2 && !types.has("array")) {
    input.inputMode = number.type === "integer" ? "numeric" : "decimal";
  }
  input.autocomplete = "off";
  input.spellcheck = false;
  input.placeholder = `default: ${standard}`;
  return input;
}

/** @param {Schema} schema @param {Field} input @returns {unknown} */
function read(schema, input) {
  const text = input.value.trim();
  if (text === "") return undefined;
  if (input instanceof HTMLSelectElement) return JSON.parse(text);
  if (input instanceof HTMLTextAreaElement) return input.value;
  const { types, words: choices, all } = list(schema);
  if (choices.includes(text)) return text;
  if (types.has("integer") || types.has("number")) {
    if (Number.isFinite(Number(text))) return Number(text);
  }
  if (types.has("array") || all.some((one) => one.properties || one.$ref)) {
    try {
      return JSON.parse(text);
    } catch {
      if (types.has("array")) return text.split(/[,\s]+/).filter(Boolean);
    }
  }
  return text;
}

/** @param {Field} input @param {unknown} value */
function write(input, value) {
  if (value === undefined) input.value = "";
  else if (input instanceof HTMLSelectElement || typeof value === "object") input.value = JSON.stringify(value);
  else input.value = String(value);
}
