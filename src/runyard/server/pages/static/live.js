// @ts-check
// What makes a page live. The stream reports what has changed; what shows it fetches itself again.
//
// - An element with data-run="ID" (or data-dataset, data-import, data-flow) gets the event "changed";
//   with hx-get and hx-trigger="changed" it then replaces itself.
// - watch(runId, callback) does the same for islands.
// - document gets "live" with every change and hint, for what appears or disappears, and "points" with
//   the new points of a run whose curves it shows.
// A hidden tab does nothing until it is shown, and then fetches everything it shows.
import { Stream } from "./live-stream.js";

/** @typedef {import("./live-stream.js").Message} Message */
/** @typedef {{ kind: "change", change: import("./live-stream.js").Change } | { kind: "hint", hint: any } | { kind: "all" }} Detail */

/** @type {Map<string, Set<(detail: Detail) => void>>} */
const watchers = new Map();

/**
 * Call back whenever a run has changed, and when everything shown is to be fetched again.
 * @param {string} runId @param {(detail: Detail) => void} callback
 * @returns {() => void} a function that ends it
 */
export function watch(runId, callback) {
  const callbacks = watchers.get(runId) ?? new Set();
  watchers.set(runId, callbacks.add(callback));
  return () => callbacks.delete(callback);
}

/**
 * Return a function that calls back at once, or as soon as the last call is so long ago.
 * @param {() => void} callback @param {() => number} everyMs
 */
export function throttle(callback, everyMs) {
  let timer = 0, last = -Infinity;
  return () => {
    if (timer) return;
    timer = window.setTimeout(() => {
      [timer, last] = [0, performance.now()];
      callback();
    }, Math.max(0, last + everyMs() - performance.now()));
  };
}

/**
 * Show a message for some seconds; with an action, until it is dismissed.
 * @param {string} text @param {{ label: string, run: () => void }} [action]
 */
export function showToast(text, action) {
  const box = document.querySelector("#toasts");
  if (!box) return;
  const toast = document.createElement("div");
  toast.className = "toast";
  toast.textContent = text;
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.label;
    button.addEventListener("click", action.run);
    toast.append(button);
  } else {
    setTimeout(() => toast.remove(), 8000);
  }
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.textContent = "✕";
  close.setAttribute("aria-label", "Dismiss");
  close.addEventListener("click", () => toast.remove());
  toast.append(close);
  box.append(toast);
}

// Changes.

/** @param {string} kind @param {string} id @param {Detail} detail */
function dispatch(kind, id, detail) {
  for (const element of document.querySelectorAll(`[data-${kind}="${CSS.escape(id)}"]`)) {
    element.dispatchEvent(new CustomEvent("changed", { detail }));
  }
  if (kind === "run") for (const callback of watchers.get(id) ?? []) callback(detail);
}

/** Fetch everything that is shown: changes may have been missed. */
function refresh() {
  const detail = /** @type {Detail} */ ({ kind: "all" });
  for (const element of document.querySelectorAll("[data-run], [data-dataset], [data-import], [data-flow]")) {
    element.dispatchEvent(new CustomEvent("changed", { detail }));
  }
  for (const callbacks of watchers.values()) for (const callback of callbacks) callback(detail);
  document.dispatchEvent(new CustomEvent("live", { detail }));
}

let isStale = false; // something was missed while hidden
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && isStale) {
    isStale = false;
    refresh();
  }
});

/** @param {Message} message */
function receive(message) {
  if (message.type === "state") {
    showState(message);
    return;
  }
  heard = Date.now();
  if (message.type === "alive") return;
  if (document.hidden) {
    isStale = true;
    return;
  }
  if (message.type === "reset") {
    refresh();
    return;
  }
  if (message.type === "points") {
    document.dispatchEvent(new CustomEvent("points", { detail: message.points }));
    return;
  }
  /** @type {Detail} */
  const detail = message.type === "change"
    ? { kind: "change", change: message.change }
    : { kind: "hint", hint: message.hint };
  if (detail.kind === "change") dispatch(detail.change.kind, detail.change.target, detail);
  else if (detail.kind === "hint") dispatch("run", detail.hint.run, detail);
  document.dispatchEvent(new CustomEvent("live", { detail }));
}

// The line at the bottom.

const LOAD_EVERY_MS = 2000;
let loadTimer = 0;
document.addEventListener("live", (event) => {
  const { kind, change } = /** @type {CustomEvent} */ (event).detail;
  if (loadTimer || (kind === "change" && change.kind !== "run") || kind === "hint") return;
  loadTimer = window.setTimeout(() => {
    loadTimer = 0;
    document.querySelector("#load")?.dispatchEvent(new CustomEvent("changed"));
  }, LOAD_EVERY_MS);
});

let heard = Date.now();
let state = "waiting";
let lostAt = "";
const dot = document.querySelector("#live-dot");
const text = document.querySelector("#live-text");
const age = document.querySelector("#live-age");

/** @param {import("./live-stream.js").State} message */
function showState(message) {
  if (message.state === "out") {
    location.assign(`/ui/enter?next=${encodeURIComponent(location.pathname + location.search)}`);
    return;
  }
  if (message.state === "live") {
    heard = Date.now();
    const isBehind = (message.number ?? 0) > Number(document.body.dataset.event ?? 0);
    if (state === "away" || (state === "waiting" && isBehind)) document.hidden ? (isStale = true) : refresh();
    showVersion(message);
  }
  if (message.state === "away" && state !== "away") lostAt = new Date(heard).toLocaleTimeString();
  state = message.state;
  dot?.setAttribute("data-state", state);
  if (text) text.textContent = { live: "live", away: `not live · last ${lostAt}`, waiting: "connecting…", out: "" }[message.state];
  showAge();
}

function showAge() {
  if (age) age.textContent = state === "live" ? ` · ${Math.round((Date.now() - heard) / 1000)} s` : "";
}
setInterval(() => document.hidden || showAge(), 1000);

const ownAssets = new URL(import.meta.url).pathname.split("/")[3];
let toldAssets = ownAssets;
/** @param {{ version?: string, assets?: string }} server */
function showVersion({ version, assets }) {
  if (!assets || assets === toldAssets) return;
  toldAssets = assets;
  if (assets !== ownAssets) showToast(`Runyard ${version} is running now.`, { label: "Reload", run: () => location.reload() });
}

const watched = [...new Set([...document.querySelectorAll("ry-chart[run]")].map((chart) => chart.getAttribute("run") ?? ""))];

/** The worker does not know when a tab is gone, so the tab says so; one that comes back connects again. */
function connect() {
  if (!window.SharedWorker) {
    const stream = new Stream(receive);
    const follow = () => (document.hidden ? stream.close() : stream.open(watched));
    document.addEventListener("visibilitychange", () => {
      isStale = true;
      follow();
    });
    follow();
    return;
  }
  const worker = new SharedWorker(new URL("live-worker.js", import.meta.url), { type: "module", name: "runyard" });
  worker.port.onmessage = ({ data }) => receive(data);
  worker.port.postMessage({ watch: watched });
  addEventListener("pagehide", () => worker.port.postMessage("leave"), { once: true });
}
connect();
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// Failed requests of htmx: the server's sentence, or the form to sign in.

document.addEventListener("htmx:response:error", (event) => {
  const { response, text: body } = /** @type {CustomEvent} */ (event).detail.ctx;
  if (response.status === 401) {
    location.assign(`/ui/enter?next=${encodeURIComponent(location.pathname + location.search)}`);
    return;
  }
  let message = `The server answered ${response.status}.`;
  try {
    message = JSON.parse(body).message ?? message;
  } catch {
    // Not a problem document.
  }
  showToast(message);
});

// Theme.

const root = document.documentElement;
document.querySelector("#theme")?.addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // The choice then lasts as long as the page.
  }
  dispatchEvent(new Event("themed"));
});

// Text that copies itself: <button data-copy="run_8f2c">.

document.addEventListener("click", async (event) => {
  const button = event.target instanceof Element ? event.target.closest("[data-copy]") : null;
  if (!(button instanceof HTMLElement)) return;
  const source = button.dataset.copy || document.getElementById(button.dataset.copyFrom ?? "")?.textContent || "";
  try {
    await navigator.clipboard.writeText(source);
    showToast("Copied.");
  } catch {
    showToast(`Could not copy: ${source}`);
  }
});
performance.mark("live-ready");
