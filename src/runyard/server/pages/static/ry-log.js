// @ts-check
// <ry-log run src>: the log of a run. It begins at the end, holds a window of lines, and reads more
// when one scrolls. Following ends visibly as soon as one scrolls up. The template provides the
// form; its fields have the names of the address: q, regex, case, level, follow, time, wrap.
import { watch } from "./live.js";

/** @typedef {{ number: number, time: number, attempt: number, stream: string, text: string, level?: string }} Line
 * @typedef {{ items: Line[], next: number, previous: number | null, ended: boolean, hasMore: boolean, searchedTo: number | null, last: number }} Page */

const ROWS = 300, PAGE = 100, MOST_MATCHES = 2000, EDGE = 240;
const SCROLLING_MS = 1000; // a wheel or a key scrolls for as long, at most
const ESCAPE = /\x1b\[([0-9;]*)m|\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07/g;

/** Split a line at its color codes.
 * @param {string} text @returns {{ text: string, style: string }[]} */
export function parseColors(text) {
  /** @type {{ text: string, style: string }[]} */
  const parts = [];
  let start = 0, foreground = "", isBold = false;
  const add = (/** @type {number} */ end) => {
    if (end > start) parts.push({ text: text.slice(start, end), style: [foreground, isBold ? "ansi-bold" : ""].filter(Boolean).join(" ") });
  };
  for (const found of text.matchAll(ESCAPE)) {
    add(found.index);
    start = found.index + found[0].length;
    if (found[1] === undefined) continue;
    for (const code of found[1].split(";").map(Number)) {
      if (code === 0) [foreground, isBold] = ["", false];
      else if (code === 1) isBold = true;
      else if (code === 22) isBold = false;
      else if (code === 39) foreground = "";
      else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) foreground = `ansi-${code % 10}`;
    }
  }
  add(text.length);
  return parts;
}

class Log extends HTMLElement {
  /** @type {Line[]} */ lines = [];
  /** @type {number[]} */ hits = [];
  at = -1;
  isEnd = true;
  /** @type {number | null} the number to pass as `before` for lines above */ above = null;
  below = 0; // the number to pass as `since` for lines below
  hasEnded = false;
  isBusy = false;
  isStale = false;
  search = 0;
  top = 0; // where the box last was
  usedAt = -Infinity; // when the reader last used the box: wheel, touch, pointer or key
  /** @type {() => void} */ end = () => {};

  get form() { return /** @type {HTMLFormElement} */ (this.querySelector("form")); }
  get box() { return /** @type {HTMLElement} */ (this.querySelector(".lines")); }
  get status() { return /** @type {HTMLElement} */ (this.querySelector(".matches")); }
  get more() { return /** @type {HTMLButtonElement} */ (this.querySelector("[data-newest]")); }

  connectedCallback() {
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.step(1); });
    let timer = 0;
    this.form.addEventListener("input", (event) => {
      const { name } = /** @type {HTMLInputElement} */ (event.target);
      this.write();
      if (name === "follow") { if (this.isOn("follow")) this.loadEnd(); }
      else if (name === "level") this.loadEnd().then(() => this.find());
      else if (name === "time" || name === "wrap") this.show();
      else { clearTimeout(timer); timer = setTimeout(() => this.find(), 200); }
    });
    this.querySelector("[data-previous]")?.addEventListener("click", () => this.step(-1));
    this.querySelector("[data-next]")?.addEventListener("click", () => this.step(1));
    this.more.addEventListener("click", () => this.follow(true));
    const resized = new ResizeObserver(() => { if (this.isOn("follow")) this.toEnd(); });
    resized.observe(this.box);
    this.box.addEventListener("scroll", () => this.onScroll());
    for (const type of ["wheel", "touchmove", "keydown", "pointerdown", "pointermove", "pointerup"]) {
      this.box.addEventListener(type, (event) => this.onUse(/** @type {PointerEvent} */ (event)), { passive: true });
    }
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    this.end = watch(this.getAttribute("run") ?? "", (/** @type {any} */ detail) => { if (detail.change?.what === "deleted") this.end(); else this.onChange(); });
    const visible = () => { if (!document.hidden && this.isStale) this.onChange(); };
    document.addEventListener("visibilitychange", visible);
    const hash = () => { const number = this.lineOfHash(); if (number) this.jump(number); };
    addEventListener("hashchange", hash);
    const stop = this.end;
    this.end = () => { stop(); resized.disconnect(); document.removeEventListener("visibilitychange", visible); removeEventListener("hashchange", hash); };
    this.open();
  }
  disconnectedCallback() { this.end(); }

  /** Show what the address asks for: a line, a time, a search, or the end. */
  async open() {
    this.show();
    const at = Number(new URLSearchParams(location.search).get("at"));
    if (this.lineOfHash()) await this.jump(this.lineOfHash());
    else if (at) await this.loadTime(at);
    else await this.loadEnd();
    if (this.value("q")) await this.find();
  }
  lineOfHash() { return Number(/^#L(\d+)$/.exec(location.hash)?.[1] ?? 0); }

  /** @param {string} name */
  field(name) { return /** @type {HTMLInputElement} */ (this.form?.elements.namedItem(name)); }
  /** @param {string} name */
  value(name) { return this.field(name)?.value ?? ""; }
  /** @param {string} name */
  isOn(name) { return this.field(name)?.checked ?? false; }

  /** Write the form into the address. */
  write() {
    const address = new URL(location.href);
    for (const name of ["q", "level", "regex", "case", "follow", "time", "wrap"]) {
      const field = this.field(name), value = field.type === "checkbox" ? (field.checked ? "1" : "0") : field.value;
      if (value === (field.dataset.default ?? "")) address.searchParams.delete(name); else address.searchParams.set(name, value);
    }
    address.searchParams.delete("at");
    history.replaceState(history.state, "", address);
  }

  /** @param {Record<string, string | number>} query @returns {Promise<Page>} */
  async request(query) {
    const parameters = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)]));
    if (this.value("level")) parameters.set("level", this.value("level"));
    const answer = await fetch(`${this.getAttribute("src")}?${parameters}`);
    if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.detail ?? `the server answered ${answer.status}`);
    return answer.json();
  }

  /** @param {() => Promise<void>} work */
  async exclusively(work) {
    if (this.isBusy) return;
    this.isBusy = true;
    try { await work(); this.box.removeAttribute("data-error"); } catch (error) {
      this.box.dataset.error = error instanceof Error ? error.message : String(error);
      return;
    } finally { this.isBusy = false; }
    if (this.isStale) this.onChange();
  }

  async loadEnd() {
    await this.exclusively(async () => {
      this.isStale = false;
      const page = await this.request({ tail: PAGE });
      this.replace(page, true);
      this.toEnd();
    });
  }

  /** @param {number} ms */
  async loadTime(ms) {
    const page = await this.request({ after: ms, limit: 1 });
    await (page.items.length ? this.jump(page.items[0].number) : this.loadEnd());
  }

  /** Show a line in the middle.
   * @param {number} number */
  async jump(number) {
    this.follow(false);
    if (!this.row(number)) {
      await this.exclusively(async () => {
        const page = await this.request({ before: number + PAGE / 2, limit: PAGE });
        this.replace(page, (page.items.at(-1)?.number ?? 0) >= page.last);
      });
    }
    this.box.querySelector("[aria-current]")?.removeAttribute("aria-current");
    const row = this.row(number);
    row?.setAttribute("aria-current", "true");
    if (row) this.box.scrollTop = row.offsetTop - this.box.clientHeight / 2;
  }

  /** @param {Page} page @param {boolean} isEnd */
  replace(page, isEnd) {
    this.lines = [];
    this.box.replaceChildren();
    this.isEnd = isEnd;
    this.hasEnded = page.ended;
    this.above = page.previous;
    this.below = page.next;
    this.add(page.items, false);
  }

  /** Add lines at one end and remove as many as are too many at the other.
   * @param {Line[]} items @param {boolean} isAbove */
  add(items, isAbove) {
    const all = document.createDocumentFragment();
    for (const line of items) all.append(this.build(line));
    const height = this.box.scrollHeight;
    if (isAbove) {
      this.box.prepend(all);
      this.lines.unshift(...items);
      this.box.scrollTop += this.box.scrollHeight - height;
      while (this.lines.length > ROWS) {
        this.lines.pop();
        this.box.lastElementChild?.remove();
        this.isEnd = false;
        this.below = this.lines.at(-1)?.number ?? 0;
      }
    } else {
      this.box.append(all);
      this.lines.push(...items);
      const before = this.box.scrollHeight;
      while (this.lines.length > ROWS) {
        this.lines.shift();
        this.box.firstElementChild?.remove();
        this.above = this.lines[0].number;
      }
      if (this.isOn("follow")) this.toEnd(); else this.box.scrollTop -= before - this.box.scrollHeight;
    }
    this.show();
    this.paint();
  }

  /** @param {Line} line */
  build(line) {
    const row = document.createElement("div"), number = document.createElement("a"), time = document.createElement("time");
    row.id = `L${line.number}`;
    row.className = "line";
    row.dataset.level = line.level ?? "info";
    row.dataset.stream = line.stream;
    number.href = `#L${line.number}`;
    number.textContent = String(line.number);
    number.setAttribute("aria-label", `Link to line ${line.number}`);
    const when = new Date(line.time);
    time.dateTime = when.toISOString();
    time.title = `${when.toLocaleString()} · attempt ${line.attempt} · ${line.stream}`;
    time.textContent = when.toLocaleTimeString([], { hour12: false });
    const text = document.createElement("span");
    text.className = "text";
    for (const part of parseColors(line.text.slice(line.text.lastIndexOf("\r", line.text.length - 2) + 1))) {
      const piece = part.style ? Object.assign(document.createElement("span"), { className: part.style }) : null;
      if (piece) piece.textContent = part.text;
      text.append(piece ?? part.text);
    }
    row.append(number, time, text);
    return row;
  }
  /** @param {number} number */
  row(number) { return /** @type {HTMLElement | null} */ (this.box.querySelector(`#L${number}`)); }

  toEnd() { this.box.scrollTop = this.box.scrollHeight; this.top = this.box.scrollTop; }

  /** Show the state of the form. */
  show() {
    this.box.classList.toggle("hides-time", !this.isOn("time"));
    this.box.classList.toggle("wraps", this.isOn("wrap"));
    this.classList.toggle("is-empty", !this.lines.length);
    this.more.hidden = this.isOn("follow") || (this.isEnd && !this.isStale);
  }

  /** @param {boolean} isOn */
  follow(isOn) {
    this.field("follow").checked = isOn;
    this.write();
    this.show();
    if (isOn) this.loadEnd();
  }

  /** Note when the reader uses the box; a pressed button, as on the scroll bar, is in use until it is released.
   * @param {PointerEvent} event */
  onUse(event) {
    if (event.type === "pointerdown") this.usedAt = Infinity;
    else if (event.type !== "pointermove" || (this.usedAt === Infinity && !event.buttons)) this.usedAt = event.timeStamp;
  }

  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    // Lines and sizes that change scroll the box, too; only a reader scrolls it right after using it.
    const isUp = scrollTop < this.top - 2 && performance.now() - this.usedAt < SCROLLING_MS;
    this.top = scrollTop;
    if (isUp && this.isOn("follow")) this.follow(false);
    if (scrollTop < EDGE && this.above !== null) {
      const before = this.above;
      this.exclusively(async () => {
        const page = await this.request({ before, limit: PAGE });
        this.above = page.previous;
        this.add(page.items, true);
      });
    } else if (scrollHeight - scrollTop - clientHeight < EDGE && !this.isEnd) this.exclusively(() => this.loadNext());
  }

  async loadNext() {
    this.isStale = false;
    const page = await this.request({ since: this.below, limit: PAGE });
    this.isEnd = !page.hasMore;
    this.below = page.next;
    this.hasEnded = page.ended;
    this.add(page.items, false);
  }

  async onChange() {
    this.isStale = true;
    if (document.hidden || this.isBusy) return; // the request that keeps it busy calls this again
    if (!this.isOn("follow") || !this.isEnd) { this.show(); return; }
    await this.exclusively(async () => { do await this.loadNext(); while (!this.isEnd); });
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n" || event.key === "N") this.step(event.key === "n" ? 1 : -1);
    else if (event.key === "End") this.follow(true);
    else if (event.key === "Home") this.jump(1);
    else return;
    event.preventDefault();
  }

  /** Find all matches in the whole log, page by page, and show the nearest. */
  async find() {
    const search = ++this.search, query = { search: this.value("q"), ...(this.isOn("regex") ? { regex: "true" } : {}), ...(this.isOn("case") ? { case: "true" } : {}) };
    [this.hits, this.at] = [[], -1];
    this.paint();
    if (!query.search) { this.status.textContent = ""; return; }
    let since = 0, isComplete = false;
    try {
      while (!isComplete && this.hits.length < MOST_MATCHES) {
        const page = await this.request({ ...query, since, limit: 1000 });
        if (search !== this.search) return;
        this.hits.push(...page.items.map(({ number }) => number));
        isComplete = !page.hasMore;
        since = page.next;
        if (this.at < 0 && this.hits.length) this.step(0);
        this.count(isComplete);
      }
    } catch (error) { this.status.textContent = error instanceof Error ? error.message : String(error); }
  }

  /** Go to another match; 0 goes to the nearest.
   * @param {number} by */
  async step(by) {
    if (!this.hits.length) return;
    if (by === 0) {
      const first = [...this.box.children].find((row) => /** @type {HTMLElement} */ (row).offsetTop >= this.box.scrollTop);
      const from = Number(first?.id.slice(1) ?? 0), nearest = this.hits.findIndex((number) => number >= from);
      this.at = nearest < 0 ? this.hits.length - 1 : nearest;
    } else this.at = (this.at + by + this.hits.length) % this.hits.length;
    this.count();
    await this.jump(this.hits[this.at]);
  }

  /** @param {boolean} isComplete */
  count(isComplete = this.status.dataset.complete === "true") {
    this.status.dataset.complete = String(isComplete);
    const total = `${this.hits.length.toLocaleString()}${isComplete ? "" : "+"}`;
    this.status.textContent = this.hits.length ? `${this.at + 1} of ${total}` : isComplete ? "no match" : "searching …";
  }

  /** Highlight what is searched for in the lines that are shown. */
  paint() {
    const text = this.value("q");
    /** @type {Range[]} */
    const ranges = [];
    const source = this.isOn("regex") ? text : text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    let pattern = null;
    try { pattern = text ? new RegExp(source, this.isOn("case") ? "g" : "gi") : null; } catch { /* the server says what is wrong with it */ }
    for (const row of pattern ? this.box.children : []) {
      for (const node of row.querySelector(".text")?.childNodes ?? []) {
        const inner = node.firstChild ?? node;
        for (const found of (inner.textContent ?? "").matchAll(/** @type {RegExp} */ (pattern))) {
          if (!found[0]) break;
          const range = new Range();
          range.setStart(inner, found.index);
          range.setEnd(inner, found.index + found[0].length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights?.set("found", new Highlight(...ranges));
  }
}
customElements.define("ry-log", Log);
