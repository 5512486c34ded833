// @ts-check
// What all tabs of a run share: parts that refetch themselves on certain changes, and dialogs that
// close when their form is sent.
//
// <section data-refresh="RUN" data-refresh-on="checkpoint evaluation" hx-get=… hx-trigger="refresh">
// gets the event "refresh" when one of these changes is reported; `any` means all changes, and what
// was missed while disconnected counts as each of them.
import { watch } from "./live.js";

// What an evaluation has predicted arrives after the evaluation: it is fetched with the hints that follow.
const HINTS_AFTER = 2;
/** @type {WeakMap<Element, number>} */
const expecting = new WeakMap();

/** @param {HTMLElement} element @param {any} detail */
function isMeant(element, detail) {
  const wanted = (element.dataset.refreshOn ?? "").split(" "), what = detail.change?.what;
  if (what === "deleted") return false;
  const left = expecting.get(element) ?? 0;
  if (detail.kind === "hint" && left) {
    expecting.set(element, left - 1);
    return true;
  }
  if (what === "evaluation" && wanted.includes("evaluation")) expecting.set(element, HINTS_AFTER);
  return detail.kind === "all" || (detail.kind === "change" && (wanted.includes("any") || wanted.includes(what)));
}

const runs = new Set([...document.querySelectorAll("[data-refresh]")].map((element) => /** @type {HTMLElement} */ (element).dataset.refresh ?? ""));
for (const run of runs) {
  watch(run, (detail) => {
    for (const element of document.querySelectorAll(`[data-refresh="${CSS.escape(run)}"]`)) {
      if (isMeant(/** @type {HTMLElement} */ (element), detail)) element.dispatchEvent(new CustomEvent("refresh"));
    }
  });
}

document.addEventListener("submit", (event) => {
  const dialog = event.target instanceof Element ? event.target.closest("dialog") : null;
  dialog?.close();
});
