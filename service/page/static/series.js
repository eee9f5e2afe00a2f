// The steps of one job as they arrive: the history that stands, and what was rolled back in it.
// The server names the columns, thins the history and computes the spans.

import { count, parse, stretch } from "/page/format.js";

/** What the x axis can count, with its name in words. */
export const AXES = { attempt: "attempts", step: "steps", time: "seconds" };

export class Steps {
  rows = [];
  /** The attempts that each rollback discarded, as [first, last]. */
  rolledBack = [];
  evaluations = [];

  /** Starts again with a history. */
  begin(update) {
    this.rows = [];
    this.evaluations = [];
    this.add(update);
  }

  /** Adds the rows of an update: { columns, numbers, rolled_back, evaluations }. */
  add({ columns, numbers, rolled_back: spans, evaluations = [] }) {
    const names = Object.keys(columns);
    columns.attempt.forEach((_, i) => this.rows.push(Object.fromEntries(
      names.map((name) => [name, numbers.includes(name) ? parse(columns[name][i]) : columns[name][i]]))));
    this.rolledBack = spans;
    this.evaluations.push(...evaluations);
  }

  get last() {
    return this.rows.at(-1) ?? null;
  }

  /** Steps a second over the last rows: null where that is unknown. */
  get rate() {
    const recent = this.#standing().slice(-60);
    const [first, last] = [recent[0], recent.at(-1)];
    const rate = recent.length > 1 ? (last.step - first.step) / (last.time - first.time) : NaN;
    return Number.isFinite(rate) && rate > 0 ? rate : null;
  }

  /** The rows over an axis: { axis, rows with x, spans, at(attempt), say(row) }. */
  over(axis) {
    const start = this.rows[0]?.time ?? 0;
    const of = { attempt: (row) => row.attempt, step: (row) => row.step, time: (row) => row.time - start }[axis];
    const shown = axis === "step" ? this.#standing() : this.rows;
    let x = -Infinity;
    const rows = shown.map((row) => ({ ...row, x: (x = Math.max(x, Number.isFinite(of(row)) ? of(row) : x)) }));
    const at = (attempt) => rows[Math.min(rows.length - 1, place(rows, attempt))]?.x ?? attempt;
    const edges = ([from, to]) => (axis === "attempt" ? [from - 0.5, to + 0.5] : [at(from), at(to)]);
    return {
      axis,
      rows,
      at: axis === "attempt" ? (attempt) => attempt : at,
      spans: axis === "step" ? [] : this.rolledBack.map(edges),
      say: {
        attempt: (row) => `${count(row.attempt)}, step ${count(row.step)}`,
        step: (row) => `${count(row.step)}, attempt ${count(row.attempt)}`,
        time: (row) => `${stretch(row.x)}, step ${count(row.step)}`,
      }[axis],
    };
  }

  /** The values of each evaluated metric: name to rows with x and value. */
  evaluated(view) {
    const found = new Map();
    for (const { attempt, step, metrics } of this.evaluations) {
      for (const [name, value] of Object.entries(metrics)) {
        if (!found.has(name)) found.set(name, []);
        const row = { attempt, step, value: parse(value), x: view.axis === "step" ? step : view.at(attempt) };
        if (Number.isFinite(row.x)) found.get(name).push(row);
      }
    }
    found.delete("epoch");
    return found;
  }

  /** The attempts whose step was applied and not rolled back, by step. */
  #standing() {
    const inside = (attempt) => this.rolledBack.some(([from, to]) => attempt >= from && attempt <= to);
    return this.rows.filter((row) => Number.isFinite(row.step) && ["applied", "clipped"].includes(row.action) && !inside(row.attempt));
  }
}

/** A moving average with weight w on what was before, corrected for its start (as TensorBoard has it). */
export function smoothed(values, weight) {
  let [sum, norm] = [0, 0];
  return values.map((value) => {
    if (!Number.isFinite(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

/** The index of the first row that is not before an attempt. */
function place(rows, attempt) {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].attempt < attempt) low = middle + 1;
    else high = middle;
  }
  return low;
}
