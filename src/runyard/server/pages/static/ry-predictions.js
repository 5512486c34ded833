// @ts-check
// <ry-predictions>: keys and slider of the gallery. Links do the work; this only follows them.

class Predictions extends HTMLElement {
  connectedCallback() {
    this.onKey = this.onKey.bind(this);
    this.restore = this.restore.bind(this);
    document.addEventListener("keydown", this.onKey);
    document.addEventListener("htmx:after:swap", this.restore);
    this.addEventListener("input", (event) => {
      const slider = /** @type {HTMLInputElement} */ (event.target);
      if (slider.type === "range") {
        const link = this.evaluations()[Number(slider.value)];
        clearTimeout(this.timer);
        this.timer = setTimeout(() => link?.click(), 60);
        const output = this.querySelector("output");
        if (output) output.value = link?.textContent?.trim() ?? "";
      } else if (slider.dataset.show) this.toggle();
    });
  }
  disconnectedCallback() {
    document.removeEventListener("keydown", this.onKey);
    document.removeEventListener("htmx:after:swap", this.restore);
  }
  timer = 0;
  shown = "ty";
  evaluations() { return /** @type {HTMLAnchorElement[]} */ ([...this.querySelectorAll("[data-evaluation]")]); }
  tiles() { return /** @type {HTMLAnchorElement[]} */ ([...this.querySelectorAll("[data-tile]")]); }

  /** Apply the checkboxes to the image and to the tiles. */
  toggle() {
    this.shown = this.boxes().filter((box) => box.checked).map((box) => box.dataset.show).join("");
    this.restore();
  }
  boxes() { return /** @type {HTMLInputElement[]} */ ([...this.querySelectorAll("[data-show]")]); }

  /** Show the same kinds of boxes after another sample has been fetched. */
  restore() {
    for (const box of this.boxes()) box.checked = this.shown.includes(box.dataset.show ?? "?");
    this.querySelector("ry-picture")?.setAttribute("show", this.shown);
    this.dataset.shown = this.shown;
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /** @type {HTMLElement} */ (event.target).closest("input:not([type=checkbox], [type=range]), textarea, select, dialog")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], evaluation = { ArrowDown: -1, ArrowUp: 1 }[event.key];
    const go = (/** @type {HTMLAnchorElement[]} */ links, /** @type {number} */ by) => {
      const at = links.findIndex((link) => link.hasAttribute("aria-current"));
      const next = links[Math.min(Math.max(at + by, 0), links.length - 1)];
      if (next && !next.hasAttribute("aria-current")) next.click();
    };
    if ((step || evaluation) && /** @type {HTMLElement} */ (event.target).closest("[type=range]")) return;
    if (step) go(this.tiles(), step);
    else if (evaluation) go(this.evaluations(), evaluation);
    else if (["t", "y", "d"].includes(event.key)) {
      const box = /** @type {HTMLInputElement | null} */ (this.querySelector(`[data-show=${event.key}]`));
      if (box) { box.checked = !box.checked; this.toggle(); }
    } else return;
    event.preventDefault();
  }
}
customElements.define("ry-predictions", Predictions);
