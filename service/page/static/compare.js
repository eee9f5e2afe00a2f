// Two jobs side by side: their curves in one chart each, their figures, and where their specs differ.

import { follow } from "/page/api.js";
import { Chart } from "/page/chart.js";
import { Controls } from "/page/controls.js";
import { h, setText, table } from "/page/dom.js";
import { Evaluations, joined } from "/page/evaluations.js";
import { count, duration, number, sentence, steps as far, tone } from "/page/format.js";
import { CURVES } from "/page/job.js";
import { Steps } from "/page/series.js";

const COLORS = ["loss", "clip"];

export function showCompare(app) {
  const asked = new URLSearchParams(location.search);
  const ids = [asked.get("a"), asked.get("b")];
  app.title("Compare");
  if (!ids.every(Boolean)) {
    app.main.append(h("h1", { tabindex: "-1" }, "Compare"), h("p", null, "Choose two jobs in the list of jobs, then press Compare."));
    return undefined;
  }
  const view = new Comparison(ids);
  app.main.append(...view.elements);
  const stops = view.runs.map((run) => follow(`/v1/jobs/${encodeURIComponent(run.id)}/live`, view.handlers(run), app.connected));
  return () => { stops.forEach((stop) => stop()); view.close(); };
}

class Comparison {
  constructor(ids) {
    this.runs = ids.map((id, i) => ({ id, color: COLORS[i], steps: new Steps(), job: null, incidents: null, badge: h("span", { class: "badge" }) }));
    this.controls = new Controls(["step", "time", "attempt"], () => this.#draw());
    this.charts = CURVES.map(({ title, height, lines: [line] }) => new Chart(title, this.runs.map(({ id, color }, i) => ({ column: `${line.column}${i}`, label: id, color, smooth: line.smooth, joined: true })), height));
    this.evaluations = new Evaluations();
    this.problem = h("p", { class: "problem", role: "alert" });
    this.figures = h("div", { class: "panel" });
    this.spec = h("div", { class: "panel" });
    const part = (name, title, ...children) => h("section", { "aria-labelledby": name }, h("h2", { id: name }, title), ...children);
    this.elements = [
      h("h1", { tabindex: "-1" }, "Compare"),
      h("ul", { class: "pair", "aria-label": "Jobs" }, this.runs.map(({ id, color, badge }) => h("li", null, h("span", { class: `swatch ${color}`, "aria-hidden": "true" }), h("a", { href: `/jobs/${id}` }, id), badge))),
      this.problem,
      part("training", "Training", h("p", { class: "muted" }, "Drag to zoom, double-click to reset."), this.controls.element, h("div", { class: "grid" }, this.charts.map((chart) => chart.element))),
      part("evaluation", "Evaluation", this.evaluations.element),
      part("figures", "Figures", this.figures),
      part("spec", "Where the specs differ", this.spec),
    ];
  }

  handlers(run) {
    return {
      job: (job) => { run.job = job; run.badge.className = `badge ${tone(job.status)}`; setText(run.badge, job.status); this.#tables(); },
      history: (update) => { run.steps.begin(update); this.#draw(); },
      steps: (update) => { run.steps.add(update); this.#draw(); },
      incidents: ({ total }) => { run.incidents = total; this.#tables(); },
      gone: () => { this.problem.textContent = `${run.id} was deleted.`; },
      refused: (error) => { this.problem.textContent = sentence(error.message); },
    };
  }

  close() {
    for (const chart of this.charts) chart.close();
    this.evaluations.close();
  }

  #draw() {
    const { axis, weight } = this.controls;
    const views = this.runs.map(({ steps }) => steps.over(axis));
    this.charts.forEach((chart, i) => {
      const { column, sparse } = CURVES[i].lines[0];
      const each = views.map(({ rows }) => (sparse ? rows.filter((row) => Number.isFinite(row[column])) : rows));
      chart.show(joined(each, axis, [column]), [], weight);
    });
    this.evaluations.show(this.runs.map(({ id, color, steps }, i) => ({ steps, view: views[i], line: { color, label: id } })));
    this.#tables();
  }

  #tables() {
    const [a, b] = this.runs.map(({ id }) => id);
    this.figures.replaceChildren(table("Figures of both jobs", ["Figure", a, b], figures(this.runs), { wraps: true }));
    const rows = differing(...this.runs.map(({ job }) => flat(job?.spec ?? {})));
    this.spec.replaceChildren(rows.length ? table("Fields of the spec that differ", ["Field", a, b], rows, { wraps: true }) : h("p", { class: "muted" }, "They are equal."));
  }
}

function figures(runs) {
  const row = (name, of) => ({ cells: [name, ...runs.map((run) => of(run) ?? "–")] });
  const names = [...new Set(runs.flatMap(({ job }) => Object.keys(job?.result?.metrics ?? {})))];
  const result = (name) => ({ job }) => (job?.result?.[name] === undefined || job?.result?.[name] === null ? null : count(job.result[name]));
  return [
    row("Progress", ({ job, steps: { last } }) => (last ? far({ step: last.step, total_steps: job?.progress?.total_steps }) : null)),
    row("Duration", ({ job }) => (job?.started ? duration((job.ended ?? Date.now() / 1000) - job.started) : null)),
    row("Loss, last step", ({ steps: { last } }) => (last ? number(last.loss) : null)),
    ...names.map((name) => row(sentence(name.replaceAll("_", " ")), ({ job }) => number(job?.result?.metrics?.[name]))),
    row("Incidents", ({ incidents }) => (incidents === null ? "0" : count(incidents))),
    row("Skips", result("skips")),
    row("Rollbacks", result("rollbacks")),
    row("Steps lost", result("steps_lost")),
  ];
}

/** Nested fields by dotted names, as --set writes them. */
function flat(value, prefix = "") {
  return Object.entries(value).flatMap(([name, entry]) => {
    const nested = entry !== null && typeof entry === "object" && !Array.isArray(entry) && Object.keys(entry).length;
    return nested ? flat(entry, `${prefix}${name}.`) : [[`${prefix}${name}`, typeof entry === "string" ? entry : JSON.stringify(entry)]];
  });
}

function differing(first, second) {
  const [a, b] = [new Map(first), new Map(second)];
  const names = [...new Set([...a.keys(), ...b.keys()])].filter((name) => a.get(name) !== b.get(name));
  return names.map((name) => ({ cells: [name, a.get(name) ?? "–", b.get(name) ?? "–"] }));
}
