// The steps of one job as they arrive: the history that stands, and what was rewound in it.

import { parse } from "/page/format.js";

const MOST = 6000;
const NUMBERS = ["attempt", "step", "time", "loss", "grad_norm", "clip_threshold", "lr"];

export class Steps {
  rows = [];

  /** Begins anew with the columns of a history. */
  begin(columns) {
    this.rows = [];
    this.add(columns);
  }

  /** Adds rows. After a restart from a checkpoint attempts come again: the later history stands. */
  add(columns) {
    columns.attempt.forEach((attempt, i) => {
      if (attempt === null) return;
      const row = { action: columns.action[i], verdict: columns.verdict[i], rolledBackTo: columns.rolled_back_to[i] };
      for (const name of NUMBERS) row[name] = parse(columns[name][i]);
      while (this.rows.length && this.rows.at(-1).attempt >= row.attempt) this.rows.pop();
      this.rows.push(row);
    });
    if (this.rows.length > MOST) this.rows = thinned(this.rows);
  }

  get last() {
    return this.rows.at(-1) ?? null;
  }

  /** The attempts that each rollback undid, as [first, last]: those whose step was beyond its target. */
  rewound() {
    const spans = [];
    const standing = [];
    for (const { attempt, step, rolledBackTo } of this.rows) {
      if (rolledBackTo !== null && rolledBackTo !== undefined) {
        let first = attempt;
        while (standing.length && standing.at(-1).step > rolledBackTo) first = standing.pop().attempt;
        spans.push([first, attempt]);
      }
      standing.push({ attempt, step });
    }
    return spans;
  }
}

/** Every second ordinary row less; what was no ordinary step stays. */
function thinned(rows) {
  const last = rows.length - 1;
  return rows.filter((row, i) => i % 2 === 0 || i === last || row.verdict !== "ok" || row.rolledBackTo !== null);
}
