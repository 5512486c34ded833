// @ts-check
// Metric series of a run: decoding packed columns, adding live points, smoothing, and one loader for
// all charts of a page. A bucket covers a power of two of steps and begins at a multiple of it, so
// points that arrive later change the last bucket or add one, and never move a boundary.

/** One key of a run. `time` is seconds since `origin`, which is epoch milliseconds.
 * @typedef {{ key: string, bucketSteps: number, step: Float64Array, time: Float64Array,
 *   epoch: Float64Array, min: Float64Array, max: Float64Array, last: Float64Array }} Series
 * @typedef {{ key: string, bucketSteps: number, timeStart: number,
 *   columns: Record<string, string> }} Packed
 * @typedef {{ from: number, to: number }} Range */

export const POINTS = 500;
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
  return { key: item.key, bucketSteps: item.bucketSteps, ...columns };
}

/** Return a series with the points of a finer or equal tail, which begins at a bucket's boundary.
 * @param {Series} series @param {Series} tail @returns {Series} */
export function append(series, tail) {
  if (!tail.step.length) return series;
  const size = series.bucketSteps;
  const first = Math.floor(tail.step[0] / size);
  let kept = series.step.length;
  while (kept && Math.floor(series.step[kept - 1] / size) >= first) kept--;
  /** @type {Record<string, number[]>} */
  const joined = {};
  for (const name of COLUMNS) joined[name] = Array.from(series[name].subarray(0, kept));
  let bucket = -1;
  for (let i = 0; i < tail.step.length; i++) {
    const index = Math.floor(tail.step[i] / size);
    const at = joined.step.length - 1;
    if (index === bucket) {
      for (const name of /** @type {const} */ (["step", "time", "epoch", "last"])) joined[name][at] = tail[name][i];
      joined.min[at] = Math.min(joined.min[at], tail.min[i]);
      joined.max[at] = Math.max(joined.max[at], tail.max[i]);
    } else {
      for (const name of COLUMNS) joined[name].push(tail[name][i]);
      bucket = index;
    }
  }
  const columns = /** @type {any} */ ({});
  for (const name of COLUMNS) columns[name] = Float64Array.from(joined[name]);
  return { key: series.key, bucketSteps: size, ...columns };
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
  const found = known.filter((key) => patterns.some((pattern) =>
    pattern.endsWith("*") ? key.startsWith(pattern.slice(0, -1)) : key === pattern));
  return found.filter((key) => !except.includes(key));
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
  /** @type {Set<string>} */ wanted = new Set();
  /** @type {Promise<void> | null} */ pending = null;
  sparseTime = 0;

  /** @param {string} query @returns {Promise<Series[]>} */
  async request(query) {
    const answer = await fetch(`${this.url}?points=${POINTS}${query}`);
    if (!answer.ok) throw new Error(`metrics: ${answer.status}`);
    const page = await answer.json();
    this.keys = page.keys;
    this.hasAnswer = true;
    return page.items.map((/** @type {Packed} */ item) => decode(item, this.origin));
  }

  /** Fetch what is missing of these keys. Calls within the same task become one request.
   * @param {string[]} keys */
  load(keys) {
    for (const key of keys) if (!this.whole.has(key)) this.wanted.add(key);
    if (!this.wanted.size && this.hasAnswer) return this.pending ?? Promise.resolve();
    this.pending ??= (async () => {
      await Promise.resolve();
      const batch = [...this.wanted];
      this.wanted.clear();
      try {
        for (const series of await this.request(list(batch))) this.whole.set(series.key, series);
      } finally { this.pending = null; }
    })();
    return this.pending;
  }

  /** Fetch these keys between two positions, in finer buckets.
   * @param {string[]} keys @param {Range} range */
  async loadRange(keys, range) {
    const zoom = `&from=${range.from}&to=${range.to}`;
    if (zoom !== this.zoom) { this.zoom = zoom; this.zoomed.clear(); }
    const missing = keys.filter((key) => !this.zoomed.has(key));
    if (!missing.length) return;
    const found = await this.request(list(missing) + zoom);
    if (zoom === this.zoom) for (const series of found) this.zoomed.set(series.key, series);
  }

  /** Fetch what was added to these keys. A key that gets points at few steps, such as a validation
   * metric, is fetched whole and not more often than every few seconds.
   * @param {string[]} keys @param {number} now */
  async extend(keys, now = Date.now()) {
    const newest = Math.max(0, ...keys.filter((key) => !isSystem(key)).map((key) => lastStep(this.whole.get(key))));
    const isSparse = (/** @type {string} */ key) => lastStep(this.whole.get(key)) < (isSystem(key) ? 0 : newest - SPARSE_STEPS);
    const sparse = keys.filter(isSparse), dense = keys.filter((key) => !isSparse(key));
    for (const group of [dense.filter(isSystem), dense.filter((key) => !isSystem(key))]) await this.extendGroup(group);
    if (now - this.sparseTime > SPARSE_MS) {
      this.sparseTime = now;
      for (const key of sparse) this.whole.delete(key);
    }
    await this.load(keys);
  }

  /** @param {string[]} keys */
  async extendGroup(keys) {
    const known = keys.flatMap((key) => this.whole.get(key) ?? []);
    if (!known.length) return;
    const from = Math.min(...known.map(startOfLast));
    for (const tail of await this.request(`${list(keys)}&from=${from}`)) {
      const series = this.whole.get(tail.key);
      if (!series) continue;
      const longer = append(series, cut(tail, startOfLast(series)));
      const isWhole = tail.bucketSteps > series.bucketSteps || longer.step.length > POINTS;
      if (isWhole) this.whole.delete(tail.key); else this.whole.set(tail.key, longer);
    }
  }

  /** Fetch everything anew, after a later attempt has repeated steps. */
  forget() { this.whole.clear(); this.zoomed.clear(); this.zoom = ""; }
}

const SPARSE_STEPS = 40, SPARSE_MS = 4000;
/** @param {string} key */
const isSystem = (key) => key.startsWith("system/");
/** @param {Series | undefined} series */
const lastStep = (series) => series?.step.at(-1) ?? -1;

/** @param {string[]} keys */
const list = (keys) => (keys.length ? `&keys=${keys.map(encodeURIComponent).join(",")}` : "&keys=loss");

/** @param {Series} series */
function startOfLast(series) {
  return Math.floor((series.step.at(-1) ?? 0) / series.bucketSteps) * series.bucketSteps;
}

/** Return the points from a step on.
 * @param {Series} tail @param {number} from @returns {Series} */
function cut(tail, from) {
  let first = 0;
  while (first < tail.step.length && tail.step[first] < from) first++;
  const columns = /** @type {any} */ ({});
  for (const name of COLUMNS) columns[name] = tail[name].subarray(first);
  return { key: tail.key, bucketSteps: tail.bucketSteps, ...columns };
}
