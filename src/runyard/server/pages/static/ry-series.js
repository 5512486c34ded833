// @ts-check
// Metric series of a run: decoding packed columns, adding live points, smoothing, and one loader for
// all charts of a page. A bucket covers a power of two of steps and begins at a multiple of it, so
// what arrives later changes the last buckets or adds some, and never moves a boundary.
import { throttle } from "./live.js";

/** One key of a run. `time` is seconds since `origin`, which is epoch milliseconds; `next` is what to
 * ask for to get what is new.
 * @typedef {{ key: string, bucketSteps: number, total: number, firstStep: number, lastStep: number,
 *   fromStep: number, next: number, step: Float64Array, time: Float64Array, epoch: Float64Array,
 *   min: Float64Array, max: Float64Array, last: Float64Array }} Series
 * @typedef {Omit<Series, "step" | "time" | "epoch" | "min" | "max" | "last"> & { timeStart: number,
 *   columns: Record<string, string> }} Packed
 * @typedef {{ from: number, to: number }} Range */

export const POINTS = 360; // at most, of each curve
const LIVE_MS = { least: 2000, most: 10_000 }; // between requests for what is new
const LARGEST = 3.4028234663852886e38; // of a float32, as which the server sends values
const COLUMNS = /** @type {const} */ (["step", "time", "epoch", "min", "max", "last"]);

/** Decode base64 of little-endian numbers.
 * @param {string} text @param {boolean} isDouble */
function decodeColumn(text, isDouble) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return Float64Array.from(isDouble ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer));
}

/** @param {Packed} item @param {number} origin @returns {Series} */
export function decode(item, origin) {
  const columns = /** @type {any} */ ({});
  for (const name of COLUMNS) columns[name] = decodeColumn(item.columns[name] ?? "", name === "step");
  const shift = (item.timeStart - origin) / 1000;
  columns.time = columns.time.map((/** @type {number} */ seconds) => seconds + shift);
  const { timeStart, columns: _, ...rest } = item;
  return { ...rest, ...columns };
}

/** Return a series with newer buckets of the same size, which replace all from their `fromStep` on.
 * @param {Series} series @param {Series} newer @returns {Series} */
export function append(series, newer) {
  if (!newer.step.length) return { ...series, next: newer.next };
  let kept = series.step.length;
  while (kept && series.step[kept - 1] >= newer.fromStep) kept--;
  const joined = { ...newer };
  for (const name of COLUMNS) {
    joined[name] = new Float64Array(kept + newer.step.length);
    joined[name].set(series[name].subarray(0, kept));
    joined[name].set(newer[name], kept);
  }
  return joined;
}

/** Return a series with the points of these rows, or null if it has to be fetched again: a step is
 * repeated, or larger buckets are due.
 * @param {Series} series @param {import("./live-stream.js").Points["rows"]} rows @param {number} origin */
export function addPoints(series, rows, origin) {
  const { key, bucketSteps: size, step: steps } = series, end = steps.length - 1;
  /** @type {any[]} */
  const buckets = end < 0 ? [] : [Object.fromEntries(COLUMNS.map((name) => [name, series[name][end]]))]; // may grow
  let total = series.total;
  for (const [step, time, epoch, values] of rows) {
    if (!(key in values)) continue;
    const value = Math.fround(Math.min(Math.max(values[key], -LARGEST), LARGEST)), before = buckets.at(-1);
    if (before && step <= before.step) return null;
    const isSame = before && Math.floor(step / size) === Math.floor(before.step / size);
    const [min, max] = isSame ? [Math.min(before.min, value), Math.max(before.max, value)] : [value, value];
    buckets.splice(isSame ? -1 : buckets.length, 1, { step, time: (time - origin) / 1000, epoch: Math.fround(epoch), min, max, last: value });
    total++;
  }
  if (total === series.total) return series;
  const lastStep = buckets.at(-1).step;
  if (total > POINTS && Math.floor(lastStep / size) - Math.floor(series.firstStep / size) >= POINTS) return null;
  const newer = { ...series, total, lastStep, fromStep: steps[end] ?? buckets[0].step };
  for (const name of COLUMNS) newer[name] = Float64Array.from(buckets, (bucket) => bucket[name]);
  return append(series, newer);
}

/** Return seconds as minutes and seconds, with hours if there are any.
 * @param {number} seconds */
export function duration(seconds) {
  const sign = seconds < 0 ? "-" : "", whole = Math.round(Math.abs(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return sign + (hours ? `${hours}:${String(minutes).padStart(2, "0")}` : String(minutes)) + `:${String(rest).padStart(2, "0")}`;
}

/** Return a series of one value up to where the longest of others ends: a level to compare them with.
 * @param {Series} series @param {Series[]} others @returns {Series} */
export function stretch(series, others) {
  const end = others.reduce((a, b) => ((b.step.at(-1) ?? 0) > (a.step.at(-1) ?? 0) ? b : a), series);
  if (!series.step.length || end === series) return series;
  const level = { ...series };
  for (const name of COLUMNS) {
    const isPlace = name === "step" || name === "time" || name === "epoch";
    level[name] = Float64Array.of(series[name][0], isPlace ? end[name][end.step.length - 1] : series[name][0]);
  }
  return level;
}

/** Exponential moving average, corrected for its start; 0 returns the values.
 * @param {ArrayLike<number>} values @param {number} weight */
export function smooth(values, weight) {
  const result = new Float64Array(values.length);
  let average = 0, share = 0;
  for (let i = 0; i < values.length; i++) {
    average = weight * average + (1 - weight) * values[i];
    share = weight * share + (1 - weight);
    result[i] = average / share;
  }
  return result;
}

/** Return every key that a pattern such as `validation/*` or `loss` names, except those listed.
 * @param {string[]} known @param {string[]} patterns @param {string[]} except */
export function match(known, patterns, except) {
  const found = patterns.flatMap((pattern) => known.filter((key) =>
    pattern.endsWith("*") ? key.startsWith(pattern.slice(0, -1)) : key === pattern));
  return [...new Set(found)].filter((key) => !except.includes(key));
}

/** All series of one run. Charts say which keys they show; one request brings all that are missing. */
export class Source {
  /** @param {string} url @param {number} origin */
  constructor(url, origin) { this.url = url; this.origin = origin; }
  /** @type {Map<string, Series>} */ whole = new Map();
  /** @type {Map<string, Series>} */ zoomed = new Map();
  /** @type {string[]} */ keys = [];
  hasAnswer = false;
  zoom = "";
  count = 0; // of the points of the run, as far as known
  /** @type {Set<string>} */ wanted = new Set();
  /** @type {Promise<void> | null} */ pending = null;
  /** @type {Set<string>} */ grown = new Set();
  /** @type {Promise<void> | null} */ extending = null;

  /** @param {string} query @returns {Promise<Series[]>} */
  async request(query) {
    const answer = await fetch(`${this.url}?points=${POINTS}${query}`);
    if (!answer.ok) throw new Error(`metrics: ${answer.status}`);
    const page = await answer.json();
    this.keys = page.keys;
    this.hasAnswer = true;
    return page.items.map((/** @type {Packed} */ item) => decode(item, this.origin));
  }

  /** Fetch what is missing of these keys. Calls at about the same time become one request.
   * @param {string[]} keys */
  async load(keys) {
    for (const key of keys) if (!this.whole.has(key)) this.wanted.add(key);
    while (this.wanted.size || this.pending) {
      this.pending ??= (async () => {
        await pause();
        const batch = [...this.wanted];
        this.wanted.clear();
        try {
          for (const series of await this.request(list(batch))) this.whole.set(series.key, series);
        } finally { this.pending = null; }
      })();
      await this.pending;
    }
  }

  /** Fetch these keys between two positions, in finer buckets; live again if the run is still there.
   * @param {string[]} keys @param {Range} range @param {boolean} isLive */
  async loadRange(keys, range, isLive) {
    const zoom = `&from=${range.from}&to=${range.to}`;
    if (zoom !== this.zoom) { this.zoom = zoom; this.zoomed.clear(); }
    const isOpen = (/** @type {string} */ key) => (this.zoomed.get(key)?.lastStep ?? 0) <= range.to;
    const missing = keys.filter((key) => !this.zoomed.has(key) || (isLive && isOpen(key)));
    if (!missing.length) return;
    const found = await this.request(list(missing) + zoom);
    if (zoom === this.zoom) for (const series of found) this.zoomed.set(series.key, series);
  }

  /** @type {Set<() => void>} */ growing = new Set();
  /** Tell those who show this that there may be more. */
  grow = throttle(() => { for (const callback of this.growing) callback(); }, () => this.liveMs());

  /** Take new points that the stream brings. After a gap they are left for the next request.
   * @param {import("./live-stream.js").Points} points */
  take({ after, rows }) {
    const count = after + rows.length;
    this.count = Math.max(this.count, count);
    for (const key of rows.flatMap((row) => Object.keys(row[3]))) if (!this.keys.includes(key)) this.keys.push(key);
    this.keys.sort();
    for (const [key, series] of this.whole) {
      if (series.next < after || series.next >= count) continue;
      const longer = addPoints(series, rows.slice(series.next - after), this.origin);
      if (longer) this.whole.set(key, { ...longer, next: count });
      else this.whole.delete(key);
    }
    this.grow();
  }

  /** After how long to ask for what is new: no sooner than a point more can be seen. */
  liveMs() {
    const ends = [...this.whole.values()].map(({ time }) => time.at(-1) ?? 0);
    return Math.min(Math.max((Math.max(0, ...ends) * 1000) / POINTS, LIVE_MS.least), LIVE_MS.most);
  }

  /** Fetch what is new of these keys. Calls at about the same time become one request.
   * @param {string[]} keys */
  extend(keys) {
    for (const key of keys) this.grown.add(key);
    this.extending ??= (async () => {
      await pause();
      const batch = [...this.grown];
      this.grown.clear();
      try { await this.extendAll(batch); } finally { this.extending = null; }
    })();
    return this.extending;
  }

  /** @param {string[]} keys */
  async extendAll(keys) {
    const known = keys.flatMap((key) => this.whole.get(key) ?? []);
    if (known.length && known.every(({ next }) => next >= this.count)) return;
    if (!known.length) {
      await this.request(list(["-"])); // only to learn which keys there are now
      return;
    }
    const since = Math.min(...known.map(({ next }) => next));
    for (const newer of await this.request(`${list(known.map(({ key }) => key))}&since=${since}`)) {
      const series = this.whole.get(newer.key);
      if (!series) continue;
      // When buckets have become too many, the answer has larger ones.
      if (newer.bucketSteps === series.bucketSteps) this.whole.set(newer.key, append(series, newer));
      else this.whole.delete(newer.key);
    }
  }

  /** Fetch everything again, after a later attempt has repeated steps. */
  forget() { this.count = 0; this.whole.clear(); this.zoomed.clear(); this.zoom = ""; }
}

/** @type {Map<string, Source>} */
const sources = new Map();

/** Return what all charts of a run share.
 * @param {string} run @param {string} url @param {number} origin */
export function getSource(run, url, origin) {
  const source = sources.get(run) ?? new Source(url, origin);
  sources.set(run, source);
  return source;
}
document.addEventListener("points", (event) => {
  const points = /** @type {CustomEvent} */ (event).detail;
  sources.get(points.run)?.take(points);
});

/** Wait until the other charts of the page have asked, too. */
const pause = () => new Promise((resolve) => setTimeout(resolve));
/** @param {string[]} keys */
const list = (keys) => `&keys=${keys.map(encodeURIComponent).join(",")}`;
