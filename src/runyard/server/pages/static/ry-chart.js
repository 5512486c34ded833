// @ts-check
// <ry-chart run src keys except origin unit empty>: curves of a run, drawn by uPlot. All charts of a
// page share one loader, one cursor and the settings in the address: x, smooth, y, from, to.
import uPlot from "./vendor/uplot.js";
import { watch } from "./live.js";
import { duration, getSource, match, smooth, stretch } from "./ry-series.js";

/** @typedef {import("./ry-series.js").Series} Series
 * @typedef {import("uplot")} Plot */
/** @typedef {{ key: string, xs: Float64Array, series: Series, smoothed: Float64Array }} Curve */

const Plot = /** @type {typeof import("uplot")} */ (/** @type {unknown} */ (uPlot));
const COLORS = 6; // and so many curves are drawn at most
/** The settings that all charts share, as the address states them. */
function settings() {
  const query = new URLSearchParams(location.search);
  const number = (/** @type {string} */ name) => { const text = query.get(name); return text && Number.isFinite(+text) ? +text : null; };
  const x = query.get("x") ?? "step", from = number("from"), to = number("to");
  return {
    x: ["step", "epoch", "time"].includes(x) ? x : "step",
    weight: Math.min(Math.max(number("smooth") ?? 0.6, 0), 0.99),
    isLog: query.get("y") === "log",
    range: from !== null && to !== null && to > from ? { from, to } : null,
    hidden: query.getAll("hide"),
  };
}

/** Change settings in the address; a zoom can be undone with Back.
 * @param {Record<string, string | null>} changes @param {boolean} isUndoable */
function change(changes, isUndoable = false) {
  const address = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) address.searchParams.delete(name); else address.searchParams.set(name, value);
  }
  history[isUndoable ? "pushState" : "replaceState"](history.state, "", address);
  dispatchEvent(new Event("chart-settings"));
}
addEventListener("popstate", () => dispatchEvent(new Event("chart-settings")));

/** Resolve a color of the style sheet.
 * @param {string} name */
function color(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** @param {number | null | undefined} value @param {string | null} unit */
function format(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (unit === "bytes") return `${(value / 2 ** 30).toFixed(value < 2 ** 30 ? 2 : 1)} GiB`;
  if (unit === "percent") return `${value.toFixed(0)} %`;
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(+value.toPrecision(4));
}

class Chart extends HTMLElement {
  /** @type {Plot | null} */ plot = null;
  /** @type {Curve[]} */ curves = [];
  /** @type {(() => void)[]} */ ends = [];
  legend = document.createElement("div");
  stage = document.createElement("div");
  note = document.createElement("p");
  table = document.createElement("details");
  isVisible = false;
  isBusy = false;
  shape = "";
  cursor = -1;

  connectedCallback() {
    const [run, url] = [this.getAttribute("run") ?? "", this.getAttribute("src") ?? ""];
    this.source = getSource(run, url, Number(this.getAttribute("origin")));
    this.build();
    const refresh = () => this.refresh();
    const source = this.source, grow = () => this.refresh(true);
    source.growing.add(grow);
    const seen = new IntersectionObserver(([entry]) => { this.isVisible = entry.isIntersecting; refresh(); }, { rootMargin: "80px" });
    seen.observe(this);
    const resized = new ResizeObserver(() => this.plot?.setSize(this.size()));
    resized.observe(this.stage);
    const theme = new MutationObserver(() => this.redraw());
    theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    const dark = matchMedia("(prefers-color-scheme: dark)"), redraw = () => this.redraw();
    dark.addEventListener("change", redraw);
    addEventListener("chart-settings", refresh);
    this.ends = [
      watch(run, (/** @type {any} */ detail) => this.onChange(detail)),
      () => source.growing.delete(grow), () => seen.disconnect(), () => resized.disconnect(), () => theme.disconnect(),
      () => dark.removeEventListener("change", redraw), () => removeEventListener("chart-settings", refresh),
    ];
  }
  disconnectedCallback() { for (const end of this.ends) end(); this.plot?.destroy(); this.plot = null; }

  build() {
    for (const [part, name] of /** @type {const} */ ([[this.legend, "legend"], [this.stage, "stage"], [this.note, "chart-note"], [this.table, "chart-table"]])) part.className = name;
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "img");
    this.stage.setAttribute("aria-label", `${this.label()}: loading`);
    this.table.append(Object.assign(document.createElement("summary"), { textContent: "Values as a table" }));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.replaceChildren(this.legend, this.stage, this.note, this.table);
    this.stage.addEventListener("keydown", (event) => this.onKey(event));
    this.stage.addEventListener("dblclick", () => change({ from: null, to: null }, true));
  }
  label() { return this.closest("figure")?.querySelector("figcaption")?.textContent?.trim() ?? "Curve"; }
  size() { return { width: Math.max(this.stage.clientWidth, 120), height: Math.max(this.stage.clientHeight, 80) }; }

  /** The unit of the horizontal axis; system metrics have no steps. */
  axis() { return this.isSystem() ? "time" : settings().x; }
  /** Whether a key is smoothed: evaluations are few, and some charts show exact values.
   * @param {string} key */
  isSmoothed(key) { return settings().weight > 0 && !/^(validation|baseline)\//.test(key) && !this.hasAttribute("exact"); }
  isSystem() { return (this.getAttribute("keys") ?? "").startsWith("system/"); }
  keys() {
    return match(this.source?.keys ?? [], this.words("keys"), this.words("except")).slice(0, COLORS);
  }
  /** @param {string} name */
  words(name) { return (this.getAttribute(name) ?? "").split(" ").filter(Boolean); }

  /** @param {any} detail */
  onChange(detail) {
    if (detail.change?.what === "deleted") for (const end of this.ends.splice(0)) end();
    if (detail.kind === "all" || detail.change?.what === "attempt-started") this.source?.forget();
    if (!this.ends.length) return;
    if (!this.source) return;
    if (detail.hint) this.source.count = Math.max(this.source.count, detail.hint.points);
    if (detail.kind === "hint") this.source.grow(); else this.refresh(true);
  }

  /** Fetch what is missing, then draw. Nothing happens while the chart is out of view.
   * @param {boolean} isLive */
  async refresh(isLive = false) {
    const source = this.source;
    if (!this.isVisible || !source || this.isBusy || document.hidden) return;
    this.isBusy = true;
    try {
      if (!source.hasAnswer) await source.load(this.words("keys"));
      else if (isLive) await source.extend(this.keys());
      const keys = this.keys();
      await source.load(keys);
      this.draw();
      const range = this.steps();
      if (range) { await source.loadRange(keys, range, isLive); this.draw(); }
      this.classList.remove("stale");
    } catch { this.classList.add("stale"); } finally { this.isBusy = false; }
  }

  /** The range of the address in steps, or seconds for system metrics; null for the whole run. */
  steps() {
    const { range, x } = settings();
    if (!range || (this.isSystem() && x !== "time")) return null;
    if (this.axis() === "step" || this.isSystem()) return { from: Math.floor(range.from), to: Math.ceil(range.to) };
    const series = this.keys().map((key) => this.source?.whole.get(key)).find((found) => found?.step.length);
    if (!series) return null;
    const xs = this.xs(series);
    let first = xs.findIndex((value) => value >= range.from), last = xs.findLastIndex((value) => value <= range.to);
    first = Math.max(first - 1, 0);
    last = Math.min(last + 1, xs.length - 1);
    return { from: Math.max(Math.floor(series.step[first]), 0), to: Math.ceil(series.step[last]) };
  }

  /** @param {Series} series */
  xs(series) { return this.isSystem() ? series.step : series[/** @type {"step"} */ (this.axis())]; }

  draw() {
    const { weight, isLog, range, hidden } = settings();
    const isZoomed = range !== null && this.steps() !== null;
    const whole = this.source?.whole, ends = this.keys().flatMap((key) => whole?.get(key) ?? []);
    this.curves = this.keys().flatMap((key) => {
      const isLevel = key.startsWith("baseline/"), own = whole?.get(key);
      const series = isLevel ? own && stretch(own, ends) : (isZoomed ? this.source?.zoomed.get(key) : null) ?? own;
      if (!series?.step.length) return [];
      return [{ key, series, xs: this.xs(series), smoothed: this.isSmoothed(key) ? smooth(series.last, weight) : series.last }];
    });
    this.note.textContent = this.curves.length ? "" : this.getAttribute("empty") ?? "No points yet.";
    this.classList.toggle("is-empty", !this.curves.length);
    const shown = this.curves.filter(({ key }) => !hidden.includes(key));
    const shape = JSON.stringify([this.axis(), weight > 0, isLog, isZoomed && range, shown.map(({ key, series }) => [key, series.bucketSteps > 1])]);
    const data = this.align(shown, isLog);
    if (this.plot && shape === this.shape) this.plot.setData(data, !isZoomed);
    else this.create(shown, data, isLog, isZoomed ? range : null);
    this.shape = shape;
    if (isZoomed && range && this.plot) this.plot.setScale("x", { min: range.from, max: range.to });
    this.describe();
    this.writeLegend();
    if (this.table.open) this.fillTable();
  }

  redraw() { this.shape = ""; if (this.isVisible) this.draw(); }

  /** Columns on one axis: lowest, highest, raw and smoothed values of each curve.
   * @param {Curve[]} curves @param {boolean} isLog @returns {import("uplot").AlignedData} */
  align(curves, isLog) {
    const positive = (/** @type {Float64Array} */ values) => Array.from(values, (value) => (isLog && value <= 0 ? null : value));
    const tables = curves.map(({ xs, series, smoothed }) =>
      [xs, ...[series.min, series.max, series.last, smoothed].map(positive)]);
    return /** @type {any} */ (tables.length ? Plot.join(/** @type {any} */ (tables)) : [[]]);
  }

  /** @param {Curve[]} curves @param {import("uplot").AlignedData} data @param {boolean} isLog
   * @param {{ from: number, to: number } | null} range */
  create(curves, data, isLog, range) {
    this.plot?.destroy();
    if (!curves.length) { this.plot = null; return; }
    const unit = this.getAttribute("unit"), isTime = this.axis() === "time";
    const base = { stroke: color("--faint"), grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false }, font: "11px Inter, system-ui" };
    /** @type {import("uplot").Series[]} */
    const series = [{}];
    /** @type {import("uplot").Band[]} */
    const bands = [];
    for (const curve of curves) {
      const stroke = color(`--curve-${this.curves.indexOf(curve) + 1}`), first = series.length;
      const faint = stroke.replace(/^rgb\((.*)\)$/, "rgba($1, 0.32)").replace(/^(oklch|color)\((.*)\)$/, "$1($2 / 0.32)");
      const isSparse = curve.key.startsWith("validation/");
      const line = { spanGaps: true, points: { show: false }, ...(curve.key.startsWith("baseline/") ? { dash: [6, 4] } : {}) };
      const isSmoothed = this.isSmoothed(curve.key), isBand = curve.series.bucketSteps > 1;
      series.push({ ...line, show: isBand, width: 0 }, { ...line, show: isBand, width: 0 },
        { ...line, show: isSmoothed, stroke: faint, width: 1 },
        { ...line, stroke, width: 1.7, points: { show: isSparse, size: 6, fill: stroke } });
      if (isBand) bands.push({ series: [first + 1, first], fill: faint.replace("0.32", "0.22") });
    }
    this.plot = new Plot({
      ...this.size(), series, bands, legend: { show: false }, padding: [8, 14, 0, 0],
      cursor: {
        sync: { key: `${this.getAttribute("src")} ${this.axis()}`, scales: ["x", null] },
        drag: { x: true, y: false, setScale: false }, points: { size: 7 },
      },
      scales: { x: { time: false, ...(range ? { range: [range.from, range.to] } : {}) }, y: { distr: isLog ? 3 : 1 } },
      axes: [
        { ...base, size: 26, values: (_, ticks) => ticks.map((tick) => (isTime ? duration(tick) : format(tick, null))) },
        { ...base, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick, unit))) },
      ],
      hooks: {
        setSelect: [(plot) => this.onSelect(plot)],
        setCursor: [(plot) => { this.cursor = plot.cursor.idx ?? -1; this.writeLegend(); }],
        draw: [(plot) => this.drawMarks(plot)],
      },
    }, data, this.stage);
    performance.mark("chart-drawn");
  }

  /** @param {Plot} plot */
  onSelect(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    const places = this.axis() === "step" ? 0 : 3;
    if (this.isSystem() && settings().x !== "time") return;
    change({ from: from.toFixed(places), to: Math.max(to, from + 10 ** -places).toFixed(places) }, true);
  }

  /** Draw checkpoints, evaluations and warnings at the foot of the plot.
   * @param {Plot} plot */
  drawMarks(plot) {
    if (this.axis() !== "step" || !this.hasAttribute("marks")) return;
    const marks = document.getElementById("marks")?.dataset.marks ?? "";
    const { ctx, bbox } = plot, scale = devicePixelRatio;
    for (const mark of marks.split(" ").filter(Boolean)) {
      const x = plot.valToPos(Number(mark.slice(1)), "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.fillStyle = color(mark[0] === "w" ? "--warn" : "--faint");
      ctx.beginPath();
      const y = bbox.top + bbox.height, size = 4 * scale;
      if (mark[0] === "c") ctx.rect(x - size / 2, y - size, size, size);
      else { ctx.moveTo(x, y - size * 1.5); ctx.lineTo(x - size * 0.8, y); ctx.lineTo(x + size * 0.8, y); }
      ctx.fill();
    }
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.plot) return;
    const xs = this.plot.data[0];
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const at = this.cursor < 0 ? xs.length - 1 : Math.min(Math.max(this.cursor + (event.key === "ArrowLeft" ? -1 : 1), 0), xs.length - 1);
      this.plot.setCursor({ left: this.plot.valToPos(xs[at], "x"), top: this.plot.over.clientHeight / 2 });
    } else if (event.key === "Escape") change({ from: null, to: null }, true);
    else if (event.key === "l" || event.key === "p") this.follow(event.key);
    else return;
    event.preventDefault();
  }

  /** Open the log, or the predictions, at the cursor.
   * @param {string} key */
  follow(key) {
    const curve = this.curves[0];
    if (!curve || !this.plot || this.cursor < 0) return;
    const x = this.plot.data[0][this.cursor], at = Math.max(curve.xs.findLastIndex((value) => value <= x), 0);
    const base = location.pathname.replace(/(\/ui\/runs\/[^/]+).*/, "$1"), origin = Number(this.getAttribute("origin"));
    location.href = key === "l" ? `${base}/log?at=${Math.round(origin + curve.series.time[at] * 1000)}` : `${base}/predictions?evaluation=${curve.series.step[at]}`;
  }

  writeLegend() {
    const unit = this.getAttribute("unit"), { hidden } = settings();
    const x = this.cursor >= 0 ? this.plot?.data[0][this.cursor] : undefined;
    const entries = this.curves.map((curve, index) => {
      const at = x === undefined ? curve.xs.length - 1 : curve.xs.findLastIndex((value) => value <= x);
      const raw = format(curve.series.last[at], unit);
      return { key: curve.key, index, text: this.isSmoothed(curve.key) ? `${format(curve.smoothed[at], unit)} (raw ${raw})` : raw, isShown: !hidden.includes(curve.key) };
    });
    while (this.legend.childElementCount > entries.length) this.legend.lastElementChild?.remove();
    for (const { key, index, text, isShown } of entries) {
      const button = /** @type {HTMLButtonElement} */ (this.legend.children[index] ?? this.legend.appendChild(this.makeEntry()));
      button.dataset.key = key;
      button.title = `Show or hide ${key}`;
      button.className = `curve-${index + 1}`;
      button.setAttribute("aria-pressed", String(isShown));
      const [name, value] = /** @type {any} */ (button.children);
      name.textContent = key.replace("validation/loss", "val loss").replace("baseline/", "baseline ").replace(/^(validation|system)\//, "");
      value.textContent = text;
    }
    const where = x === undefined ? "" : this.axis() === "time" ? duration(x) : `${this.axis()} ${format(x, null)}`;
    this.legend.dataset.at = where;
  }

  makeEntry() {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("span"), document.createElement("b"));
    button.addEventListener("click", () => {
      const { hidden } = settings(), key = button.dataset.key ?? "", address = new URL(location.href);
      address.searchParams.delete("hide");
      for (const name of hidden.includes(key) ? hidden.filter((other) => other !== key) : [...hidden, key]) address.searchParams.append("hide", name);
      history.replaceState(history.state, "", address);
      dispatchEvent(new Event("chart-settings"));
    });
    return button;
  }

  /** Say in words what the curves show. */
  describe() {
    const unit = this.getAttribute("unit");
    const parts = this.curves.map(({ key, series }) => {
      const count = series.step.length;
      const lowest = series.min.reduce((a, b) => Math.min(a, b)), highest = series.max.reduce((a, b) => Math.max(a, b));
      return `${key} from ${format(series.last[0], unit)} to ${format(series.last[count - 1], unit)}, lowest ${format(lowest, unit)}, highest ${format(highest, unit)}`;
    });
    const end = this.curves[0] ? `, up to ${this.isSystem() ? "second" : "step"} ${this.curves[0].series.step.at(-1)}` : this.note.textContent;
    this.stage.setAttribute("aria-label", `${this.label()}: ${parts.join("; ")}${end}`);
  }

  async fillTable() {
    const table = this.table.open ? (await import("./ry-table.js")).makeTable(this.curves, this.axis(), this.getAttribute("unit"), format) : null;
    this.table.querySelector("table")?.remove();
    if (table) this.table.append(table);
  }
}
customElements.define("ry-chart", Chart);

/** <ry-chart-settings>: the form of settings; its fields have the names of the address. */
class ChartSettings extends HTMLElement {
  connectedCallback() {
    const form = /** @type {HTMLFormElement} */ (this.querySelector("form"));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      const field = /** @type {HTMLInputElement} */ (event.target), isDefault = field.value === field.dataset.default;
      change({ [field.name]: isDefault ? null : field.value, ...(field.name === "x" ? { from: null, to: null } : {}) });
    });
    this.querySelector("[data-reset]")?.addEventListener("click", () => change({ from: null, to: null }, true));
    addEventListener("chart-settings", () => this.show());
    this.show();
  }
  show() {
    const { x, weight, isLog, range } = settings();
    const form = /** @type {HTMLFormElement} */ (this.querySelector("form"));
    for (const [name, value] of Object.entries({ x, smooth: String(weight), y: isLog ? "log" : "lin" })) {
      const field = /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
      if (field.value !== value) field.value = value;
    }
    /** @type {HTMLOutputElement} */ (this.querySelector("output")).value = weight ? weight.toFixed(2) : "off";
    /** @type {HTMLButtonElement} */ (this.querySelector("[data-reset]")).disabled = !range;
  }
}
customElements.define("ry-chart-settings", ChartSettings);
