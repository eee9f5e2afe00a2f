// Incidents with their evidence, and the samples that came back.

import { facts, h, setText, table } from "/page/dom.js";
import { count, number, parse, percent, plural } from "/page/format.js";
import { bars, windowed } from "/page/spark.js";

const TONES = { "Run halted": "danger", Recurred: "danger", Recovered: "good" };
const MOST_ROWS = 12;
const MOST_SAMPLES = 64;

/** The marks of incidents in the charts. */
export function marks(shown) {
  return shown.map(({ id, anchor, title, evidence }) => ({ attempt: evidence.attempt, anchor, text: String(id), label: `Incident ${id}: ${title}` }));
}

/** Draws the newest first. Cards that have not changed are kept: they may be open. */
export class Incidents {
  constructor() {
    this.cards = new Map();
    this.summary = h("p", { role: "status", class: "muted" }, "No incidents.");
    this.list = h("div", { class: "cards" });
    this.offenders = h("div");
    this.element = h("div", null, this.summary, this.offenders, this.list);
  }

  show({ total, shown, offenders = [], more_offenders: more = 0 }) {
    const before = this.cards;
    this.cards = new Map();
    for (const item of [...shown].reverse()) {
      const key = JSON.stringify(item);
      this.cards.set(key, before.get(key) ?? card(item));
    }
    this.list.replaceChildren(...this.cards.values());
    const left = total > shown.length ? `; the last ${shown.length} are shown` : "";
    setText(this.summary, total ? `${plural(total, "incident")}${left}` : "No incidents.");
    this.offenders.replaceChildren(...(offenders.length ? [samplesThatCameBack(offenders, more)] : []));
  }
}

function samplesThatCameBack(offenders, more) {
  const rows = offenders.map(({ sample, times, kinds, steps, content }) => ({ cells: [String(sample), count(times), kinds, steps, content || "–"] }));
  return h("div", { class: "panel" }, h("h3", null, "Bad samples"),
    h("p", { class: "muted" }, "Samples that made batches bad, over all epochs; those that come back first."),
    table("Bad samples, the most frequent first", ["Sample", "Times", "Kinds", "Last steps", "Content"], rows, { wraps: true }),
    more ? h("p", { class: "muted" }, `${count(more)} more are in incidents.jsonl.`) : null);
}

function card({ id, anchor, title, badge, story, advice, evidence }) {
  const tone = TONES[badge] ?? "warn";
  const factor = parse(evidence.recovery?.rate_factor);
  return h("article", { class: `panel incident ${tone}-edge`, id: anchor, tabindex: "-1" },
    h("header", null, h("a", { class: "id", href: `#${anchor}`, "aria-label": `Permanent link to incident ${id}` }, String(id)), h("h3", null, title), h("span", { class: `badge ${tone}` }, badge)),
    h("p", null, story.join(" ")),
    advice ? h("p", { class: "next" }, h("b", null, "Next: "), advice) : null,
    facts([
      ["Signal", evidence.signal],
      ["Value", number(evidence.value)],
      ["Baseline", evidence.baseline === null ? null : number(evidence.baseline)],
      ["Score", number(evidence.score)],
      ["Action", String(evidence.action ?? "").replaceAll("_", " ")],
      ["Attempt", count(evidence.attempt)],
      ["Learning rate factor", Number.isFinite(factor) && factor !== 1 ? number(factor) : null],
      ["Cost", cost(evidence)],
    ]),
    before(evidence.window),
    h("details", null, h("summary", null, "Evidence"), h("div", { class: "evidence" }, proofs(evidence))));
}

/** The attempts before it, as two small charts with values under the pointer. */
function before(window) {
  if (!(window?.length > 1)) return null;
  const picture = (name, column, kind) => {
    const values = window.map((row) => parse(row[column]));
    const texts = window.map((row) => `attempt ${count(row.attempt)}: ${number(row[column])}`);
    const shown = values.filter(Number.isFinite);
    if (!shown.length) return null;
    const range = `${number(Math.min(...shown))} to ${number(Math.max(...shown))}`;
    return h("figure", null, h("figcaption", { class: "muted" }, `${name}, the last ${window.length} attempts: ${range}`),
      windowed(values, texts, kind, `${name} before the incident: ${window.map((row) => number(row[column])).join(", ")}`));
  };
  return h("div", { class: "windows" }, picture("Loss", "loss", "loss"), picture("Gradient norm", "grad_norm", "norm"));
}

function cost({ steps_lost: lost, seconds }) {
  return plural(lost ?? 0, "step") + (seconds ? `, ${number(1000 * seconds)} ms` : "");
}

function proofs({ layers, ranks, samples, moved, bad_samples: culprits }) {
  const odd = (norm) => typeof norm === "string";
  const parts = [
    proof("Layers, the worst first", layers, ({ name, norm, share, growth }) => (
      { label: name, share: parse(share), bad: odd(norm), text: words(`norm ${number(norm)}`, grown(growth), part(share)) })),
    proof("Weights that moved, the furthest first", moved, ({ name, distance, share }) => (
      { label: name, share: parse(share), bad: odd(distance), text: words(number(distance), part(share)) })),
    proof("Ranks, the worst first", ranks, ({ rank, loss, local_norm: norm, share, nonfinite }) => (
      { label: `rank ${rank}`, share: parse(share), bad: nonfinite, text: words(`loss ${number(loss)}`, norm === null ? "" : `norm ${number(norm)}`, part(share)) })),
    proof("Bad samples, the worst first", culprits, ({ sample, rank, loss, share, nonfinite, content }) => (
      { label: words(`sample ${sample}`, content), share: nonfinite ? 1 : parse(share), bad: nonfinite, text: words(`rank ${rank}`, `loss ${number(loss)}`, nonfinite ? "not finite" : part(share)) })),
    samples?.length ? h("div", null, h("h4", null, "Samples of the batch"), h("p", { class: "muted wrap" }, sampleWords(samples))) : null,
  ].filter(Boolean);
  return parts.length ? parts : [h("p", { class: "muted" }, "None was kept.")];
}

function proof(title, rows, entry) {
  return rows?.length ? h("div", null, h("h4", null, title), bars(title, rows.slice(0, MOST_ROWS).map(entry))) : null;
}

function words(...parts) {
  return parts.filter(Boolean).join(" · ");
}

function grown(growth) {
  return Number.isFinite(parse(growth)) ? `${number(growth)}×` : "";
}

function part(share) {
  return Number.isFinite(parse(share)) ? percent(share) : "";
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
