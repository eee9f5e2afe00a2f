// Incidents with their evidence.

import { facts, h, table } from "/page/dom.js";
import { count, number, percent, plural } from "/page/format.js";

const TONES = { "Run halted": "danger", Recurred: "danger", Recovered: "good" };
const MOST_ROWS = 12;
const MOST_SAMPLES = 64;

/** The marks of incidents in the charts. */
export function marks(shown) {
  return shown.map(({ id, anchor, title, evidence }) => ({ id, anchor, title, attempt: evidence.attempt }));
}

/** Draws the newest first. Cards that have not changed are kept: they may be open. */
export class Incidents {
  constructor() {
    this.cards = new Map();
    this.summary = h("p", { role: "status", class: "muted" }, "No incidents.");
    this.list = h("div", { class: "cards" });
    this.element = h("div", null, this.summary, this.list);
  }

  show({ total, shown }) {
    const before = this.cards;
    this.cards = new Map();
    for (const item of [...shown].reverse()) {
      const key = JSON.stringify(item);
      this.cards.set(key, before.get(key) ?? card(item));
    }
    this.list.replaceChildren(...this.cards.values());
    const left = total > shown.length ? `; the last ${shown.length} are shown` : "";
    this.summary.textContent = total ? `${plural(total, "incident")}${left}` : "No incidents.";
  }
}

function card({ id, anchor, title, badge, story, evidence }) {
  const tone = TONES[badge] ?? "warn";
  return h("article", { class: `panel incident ${tone}-edge`, id: anchor, tabindex: "-1" },
    h("header", null, h("span", { class: "id" }, String(id)), h("h3", null, title), h("span", { class: `badge ${tone}` }, badge)),
    h("p", null, story.join(" ")),
    facts([
      ["Signal", evidence.signal],
      ["Value", number(evidence.value)],
      ["Baseline", evidence.baseline === null ? null : number(evidence.baseline)],
      ["Score", number(evidence.score)],
      ["Action", String(evidence.action ?? "").replaceAll("_", " ")],
      ["Attempt", count(evidence.attempt)],
      ["Cost", cost(evidence)],
    ]),
    h("details", null, h("summary", null, "Evidence"), ...proofs(evidence)));
}

function cost({ steps_lost: lost, seconds }) {
  return plural(lost ?? 0, "step") + (seconds ? `, ${number(1000 * seconds)} ms` : "");
}

function proofs({ layers, ranks, samples, moved, bad_samples: culprits }) {
  const bad = (norm) => (typeof norm === "string" ? "bad" : null);
  const parts = [
    ...proof("Layers", "the worst first", ["Layer", "Norm", "Share", "Growth"], layers, ({ name, norm, share, growth }) => (
      { class: bad(norm), cells: [name, number(norm), percent(share), growth === null ? "–" : `${number(growth)}×`] })),
    ...proof("Weights that moved", "the furthest first", ["Weight", "Distance", "Share"], moved, ({ name, distance, share }) => (
      { class: bad(distance), cells: [name, number(distance), percent(share)] })),
    ...proof("Ranks", "the worst first", ["Rank", "Loss", "Local norm", "Share"], ranks, ({ rank, loss, local_norm: norm, share, nonfinite }) => (
      { class: nonfinite ? "bad" : null, cells: [String(rank), number(loss), number(norm), percent(share)] })),
    ...proof("Bad samples", "the worst first", ["Sample", "Rank", "Loss", "Share", "Content"], culprits, ({ sample, rank, loss, share, nonfinite, content }) => (
      { class: nonfinite ? "bad" : null, cells: [String(sample), String(rank), number(loss), percent(share), content || "–"] })),
  ];
  if (samples?.length) parts.push(h("h4", null, "Samples"), h("p", { class: "muted wrap" }, sampleWords(samples)));
  return parts.length ? parts : [h("p", { class: "muted" }, "None was kept.")];
}

function proof(title, order, head, rows, cells) {
  return rows?.length ? [h("h4", null, title), table(`${title}, ${order}`, head, rows.slice(0, MOST_ROWS).map(cells))] : [];
}

/** Neighbours as one: 1000–1063. */
function sampleWords(samples) {
  const runs = [];
  for (const sample of samples) {
    if (runs.length && sample === runs.at(-1)[1] + 1) runs.at(-1)[1] = sample;
    else runs.push([sample, sample]);
  }
  const shown = runs.slice(0, MOST_SAMPLES).map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
  return runs.length > MOST_SAMPLES ? `${shown} and more` : shown;
}
