// A chart for each metric of the evaluations; more appear as they are measured.

import { Chart } from "/page/chart.js";
import { h } from "/page/dom.js";
import { count, sentence, stretch } from "/page/format.js";

const MOST = 12;

export class Evaluations {
  constructor() {
    this.charts = new Map();
    this.none = h("p", { class: "muted" }, "No evaluation yet.");
    this.grid = h("div", { class: "grid" });
    this.element = h("div", null, this.none, this.grid);
  }

  /** runs: { view, steps, line: { color, label, column } } each, one colour for each job. */
  show(runs) {
    const found = new Map();
    runs.forEach(({ steps, view }, i) => {
      for (const [name, rows] of steps.evaluated(view)) {
        if (!found.has(name)) found.set(name, runs.map(() => []));
        found.get(name)[i] = rows;
      }
    });
    for (const [name, each] of [...found].slice(0, MOST)) this.#chart(name, runs).show(joined(each, runs[0].view.axis), []);
    this.none.hidden = this.charts.size > 0;
  }

  close() {
    for (const chart of this.charts.values()) chart.close();
  }

  #chart(name, runs) {
    if (!this.charts.has(name)) {
      const lines = runs.map(({ line }, i) => ({ color: line?.color ?? "score", label: line?.label ?? sentence(name.replaceAll("_", " ")), column: `value${i}`, points: true, joined: true }));
      const chart = new Chart(sentence(name.replaceAll("_", " ")), lines, 150);
      this.charts.set(name, chart);
      this.grid.append(chart.element);
    }
    return this.charts.get(name);
  }
}

/** Rows of several runs as rows of one chart, in the order of x: column value0, value1 and so on. */
export function joined(each, axis, names = ["value"]) {
  const found = new Map();
  each.forEach((rows, i) => {
    for (const row of rows) {
      const entry = found.get(row.x) ?? { x: row.x, step: row.step, attempt: row.attempt };
      for (const name of names) entry[`${name}${i}`] = row[name];
      found.set(row.x, entry);
    }
  });
  const rows = [...found.values()].sort((a, b) => a.x - b.x);
  const say = (row) => (axis === "time" ? stretch(row.x) : count(row.x));
  return { axis, rows, spans: [], at: (attempt) => attempt, say };
}
