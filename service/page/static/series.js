// The steps of one job as they arrive: the history that stands, and what was rolled back in it.
// The server names the columns, thins the history and computes the spans.

import { parse } from "/page/format.js";

export class Steps {
  rows = [];
  /** The attempts that each rollback discarded, as [first, last]. */
  rolledBack = [];

  /** Starts again with a history. */
  begin(update) {
    this.rows = [];
    this.add(update);
  }

  /** Adds the rows of an update: { columns, numbers, rolled_back }. */
  add({ columns, numbers, rolled_back: spans }) {
    const names = Object.keys(columns);
    columns.attempt.forEach((_, i) => this.rows.push(Object.fromEntries(
      names.map((name) => [name, numbers.includes(name) ? parse(columns[name][i]) : columns[name][i]]))));
    this.rolledBack = spans;
  }

  get last() {
    return this.rows.at(-1) ?? null;
  }
}
