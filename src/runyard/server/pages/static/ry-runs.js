// @ts-check
// The page Runs: which rows to renew and when, the selection, and the keys.
const htmx = /** @type {any} */ (window).htmx;

/** @param {string} selector @returns {HTMLElement | null} */
const find = (selector) => document.querySelector(selector);
/** @returns {HTMLInputElement[]} */
const boxes = () => [...document.querySelectorAll(/** @type {"input"} */ ("#rows input[name=run]"))];

// Renewing rows. A change is shown at once; hints of a training run, and counts, every two seconds.
// New runs are counted, and listed when the user asks for them, so that no row moves.

const CHANGE_MS = 150;
const HINT_MS = 2000;
const COUNT_MS = 2000;
/** @type {Set<string>} */
const changed = new Set();
/** @type {Set<string>} */
const created = new Set();
let isCountDue = false;
let counted = 0;
let isBusy = false;
let due = Infinity;
let timer = 0;

/** @param {number} wait */
function schedule(wait) {
  const time = Date.now() + wait;
  if (time >= due) return;
  due = time;
  clearTimeout(timer);
  timer = setTimeout(renew, wait);
}

async function renew() {
  due = Infinity;
  const list = find("#list");
  if (!list || isBusy) return schedule(CHANGE_MS);
  const shown = [...changed].filter((id) => document.getElementById(`run-${id}`));
  changed.clear();
  const wait = isCountDue ? counted + COUNT_MS - Date.now() : Infinity;
  if (shown.length || wait <= 0) await fetchRows(list, shown, wait <= 0);
  if (isCountDue) schedule(Math.max(0, counted + COUNT_MS - Date.now()));
}

/** @param {HTMLElement} list @param {string[]} ids @param {boolean} isCounting */
async function fetchRows(list, ids, isCounting) {
  const query = new URLSearchParams(list.dataset.state);
  for (const id of ids.slice(0, 200)) query.append("id", id);
  if (isCounting) {
    isCountDue = false;
    counted = Date.now();
    query.append("count", "true");
    query.append("shown", list.dataset.total ?? "");
    for (const id of [...created].slice(0, 200)) query.append("new", id);
  }
  isBusy = true;
  try {
    await htmx.ajax("GET", `/ui/runs:rows?${query}`, { swap: "none" });
  } finally {
    isBusy = false;
  }
}

document.addEventListener("live", (event) => {
  const { kind, change, hint } = /** @type {CustomEvent} */ (event).detail;
  if (kind === "hint") {
    changed.add(hint.run);
    schedule(HINT_MS);
    return;
  }
  if (kind === "change" && change.kind !== "run") return;
  isCountDue = true;
  if (kind === "all") {
    for (const row of document.querySelectorAll("#rows [data-run]")) changed.add(row.id.slice(4));
  } else {
    changed.add(change.target);
    if (change.what === "created" && !document.getElementById(`run-${change.target}`)) created.add(change.target);
    if (change.what === "deleted") created.delete(change.target);
  }
  schedule(CHANGE_MS);
});

// After a new list the counted runs are in it, or do not match it.
document.addEventListener("htmx:after:swap", (event) => {
  const { ctx } = /** @type {CustomEvent} */ (event).detail;
  if (ctx.swap === "none") return;
  if (ctx.target?.id === "list") created.clear();
  const name = find("#view-name");
  if (ctx.target?.id === "views" && name instanceof HTMLInputElement) name.value = "";
  showSelection();
});
document.addEventListener("acted", () => {
  for (const box of boxes()) if (box.checked) changed.add(box.value);
  isCountDue = true;
  counted = 0;
  unselect();
  schedule(0);
});

// Ages grow by themselves; rows that do not change are not fetched for that.

const UNITS = /** @type {const} */ ([[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]);
/** @param {number} seconds */
function formatAge(seconds) {
  const [size, unit] = UNITS.find(([size]) => seconds >= size) ?? UNITS[3];
  return seconds < 5 ? "now" : `${Math.floor(seconds / size)} ${unit} ago`;
}
setInterval(() => {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("#rows time")) {
    const text = formatAge((Date.now() - Date.parse(time.getAttribute("datetime") ?? "")) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}, 15_000);

// Selection.

function showSelection() {
  const bar = find("#bulk");
  if (!(bar instanceof HTMLFormElement)) return;
  const all = boxes();
  const count = all.filter((box) => box.checked).length;
  const matching = /** @type {HTMLInputElement} */ (bar.elements.namedItem("all"));
  const total = Number(find("#list")?.dataset.total);
  bar.hidden = !count;
  if (!count) matching.checked = false;
  /** @type {HTMLElement} */ (find("#selected")).textContent = matching.checked ? "All" : String(count);
  /** @type {HTMLElement} */ (find("#matching")).hidden = count < all.length || total <= count;
  /** @type {HTMLElement} */ (find("#matching-count")).textContent = total.toLocaleString("en");
  const head = find("#all-rows");
  if (head instanceof HTMLInputElement) {
    head.checked = count > 0 && count === all.length;
    head.indeterminate = count > 0 && count < all.length;
  }
}

function unselect() {
  for (const box of boxes()) box.checked = false;
  showSelection();
}

document.addEventListener("change", ({ target }) => {
  if (!(target instanceof HTMLInputElement)) return;
  if (target.id === "all-rows") for (const box of boxes()) box.checked = target.checked;
  if (target.id === "all-rows" || target.form?.id === "bulk") showSelection();
});
document.addEventListener("click", ({ target }) => {
  if (target instanceof Element && target.closest("#unselect")) unselect();
});

// A dialog shows what it is about to do; meanwhile it says that it checks.
// Where that fails, a toast has the reason.
const dialog = /** @type {HTMLDialogElement | null} */ (find("#action"));
dialog?.addEventListener("close", () => find("#action-body")?.replaceChildren("Checking…"));
for (const name of ["htmx:response:error", "htmx:error"]) {
  document.addEventListener(name, (event) => {
    if (/** @type {CustomEvent} */ (event).detail.ctx?.target?.id === "action-body") dialog?.close();
  });
}

// Keys.

/** @param {number} step */
function move(step) {
  const rows = [...document.querySelectorAll("#rows tr[data-run]")];
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step];
  const link = next?.querySelector(".c-name a");
  if (link instanceof HTMLElement) {
    link.focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

/** @type {Record<string, () => void>} */
const keys = {
  "/": () => {
    const box = /** @type {HTMLInputElement | null} */ (find("#q"));
    box?.focus();
    box?.setSelectionRange(box.value.length, box.value.length);
  },
  j: () => move(1),
  k: () => move(-1),
  x: () => {
    const box = document.activeElement?.closest("#rows tr")?.querySelector("input[name=run]");
    if (box instanceof HTMLInputElement) box.click();
  },
  "?": () => /** @type {HTMLDialogElement | null} */ (find("#keys"))?.showModal(),
  Delete: () => find("#bulk:not([hidden]) .danger")?.click(),
  Escape: unselect,
};
document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open], :popover-open") || !Object.hasOwn(keys, key)) return;
  if (target instanceof HTMLElement && target.matches("input:not([type=checkbox]), select, textarea")) {
    if (key === "Escape") target.blur();
    return;
  }
  event.preventDefault();
  keys[key]();
});
showSelection();
