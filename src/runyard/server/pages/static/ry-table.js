// @ts-check
// The values of a chart as a table, for those who do not see it. It is loaded when somebody opens it.
import { duration } from "./ry-series.js";

const ROWS = 12; // at most, evenly spaced

/** @param {{ key: string, xs: Float64Array, series: import("./ry-series.js").Series }[]} curves
 * @param {string} axis @param {string | null} unit
 * @param {(value: number, unit: string | null) => string} format */
export function makeTable(curves, axis, unit, format) {
  const table = document.createElement("table"), first = curves[0];
  table.className = "plain";
  const addRow = (/** @type {string[]} */ cells, /** @type {string} */ tag) => {
    const row = table.insertRow();
    for (const text of cells) row.append(Object.assign(document.createElement(tag), { textContent: text }));
  };
  addRow([axis, ...curves.map(({ key }) => key)], "th");
  const count = first?.xs.length ?? 0, rows = Math.min(count, ROWS);
  for (let i = 0; i < rows; i++) {
    const x = first.xs[Math.round((i * (count - 1)) / Math.max(rows - 1, 1))];
    const values = curves.map(({ xs, series }) => format(series.last[xs.findLastIndex((value) => value <= x)], unit));
    addRow([axis === "time" ? duration(x) : format(x, null), ...values], "td");
  }
  return table;
}
