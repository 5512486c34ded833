// @ts-check
// What all tabs of a run share: parts that refetch themselves on certain changes, and dialogs that
// close when their form is sent.
//
// <section data-refresh="RUN" data-refresh-on="checkpoint evaluation" hx-get=… hx-trigger="refresh">
// gets the event "refresh" when one of these changes is reported; `any` means all changes but the
// run's deletion, and what was missed while disconnected counts as each of them. With
// data-refresh-ms, hints count too, but no more often than that.
import { throttle, watch } from "./live.js";

// What an evaluation has predicted arrives after the evaluation: it is fetched with the hints that follow.
const HINTS_AFTER = 2;
/** @type {WeakMap<Element, number>} */
const expecting = new WeakMap();

/** @type {WeakMap<Element, () => void>} */
const throttled = new WeakMap();
/** @param {Element} element */
const refresh = (element) => element.dispatchEvent(new CustomEvent("refresh"));

/** @param {HTMLElement} element */
function takeHint(element) {
  const left = expecting.get(element) ?? 0, waitMs = Number(element.dataset.refreshMs);
  if (left) {
    expecting.set(element, left - 1);
    refresh(element);
  } else if (waitMs) {
    if (!throttled.has(element)) throttled.set(element, throttle(() => refresh(element), () => waitMs));
    throttled.get(element)?.();
  }
}

/** @param {HTMLElement} element @param {string | undefined} what */
function takeChange(element, what) {
  const wanted = (element.dataset.refreshOn ?? "").split(" ");
  if (what === "evaluation" && wanted.includes(what)) expecting.set(element, HINTS_AFTER);
  if (!what || wanted.includes(what) || (wanted.includes("any") && what !== "deleted")) refresh(element);
}

const runs = new Set([...document.querySelectorAll("[data-refresh]")].map((element) => /** @type {HTMLElement} */ (element).dataset.refresh ?? ""));
for (const run of runs) {
  let isDeleted = false; // then only what says so is left to fetch
  watch(run, (/** @type {any} */ detail) => {
    isDeleted ||= detail.change?.what === "deleted";
    for (const element of document.querySelectorAll(`[data-refresh="${CSS.escape(run)}"]${isDeleted ? "[data-refresh-on~=deleted]" : ""}`)) {
      if (detail.kind === "hint") takeHint(/** @type {HTMLElement} */ (element));
      else takeChange(/** @type {HTMLElement} */ (element), detail.change?.what);
    }
  });
}

/** Load what draws an image once there is one in view. */
const seen = new IntersectionObserver((entries) => {
  if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
  seen.disconnect();
  import("./ry-picture.js");
}, { rootMargin: "200px" });
function loadImages() { for (const picture of document.querySelectorAll("ry-picture:not(:defined)")) seen.observe(picture); }
loadImages();
document.addEventListener("htmx:after:swap", loadImages);

// A dialog says what would happen now, not when the page was opened.
document.addEventListener("beforetoggle", (event) => {
  const text = event.target instanceof Element ? event.target.querySelector("[data-effect]") : null;
  const effect = document.getElementById("run-head")?.dataset[/** @type {HTMLElement | null} */ (text)?.dataset.effect ?? ""];
  if (text && effect) text.textContent = effect;
}, true);

document.addEventListener("submit", (event) => {
  const dialog = event.target instanceof Element ? event.target.closest("dialog") : null;
  dialog?.close();
});
