// One job as it runs: its state, charts, incidents, checkpoints, spec and log.

import { ApiError, call, download, follow } from "/page/api.js";
import { Chart } from "/page/chart.js";
import { Controls } from "/page/controls.js";
import { confirmed, facts, h, setText, table } from "/page/dom.js";
import { Evaluations } from "/page/evaluations.js";
import { bytes, count, duration, moment, number, progress, sentence, state, tone } from "/page/format.js";
import { Incidents, marks } from "/page/incidents.js";
import { Log } from "/page/log.js";
import { Steps } from "/page/series.js";

const ENDED = ["stopped", "succeeded", "failed", "halted"];
const TABLE_ROWS = 40;

export function showJob(app, id) {
  app.title(id);
  const view = new JobView(app, id);
  app.main.append(...view.elements);
  const stop = follow(`/v1/jobs/${encodeURIComponent(id)}/live`, view.handlers, app.connected);
  return () => { stop(); view.close(); };
}

/** The charts of the steps; those of a job, and those that a comparison overlays. */
export const CURVES = [
  { title: "Loss", height: 200, lines: [{ column: "loss", label: "loss", color: "loss", smooth: true }] },
  { title: "Gradient norm", height: 200, lines: [
    { column: "grad_norm", label: "norm", color: "norm", smooth: true },
    { column: "clip_threshold", label: "clip threshold", color: "clip", dash: [5, 4] },
  ] },
  { title: "Learning rate", height: 130, lines: [{ column: "lr", label: "learning rate", color: "rate" }] },
  { title: "Update norm / weight norm", height: 130, lines: [{ column: "update_ratio", label: "ratio", color: "rate", sparse: true, smooth: true }] },
];

class JobView {
  constructor(app, id) {
    Object.assign(this, { app, id, job: null, steps: new Steps(), incidents: { total: 0, shown: [] } });
    this.charts = CURVES.map(({ title, lines, height }) => new Chart(title, lines, height));
    this.controls = new Controls(["attempt", "step", "time"], () => this.#draw());
    this.evaluations = new Evaluations();
    this.badge = h("span", { class: "badge" });
    this.state = h("p", { id: "state", role: "status", class: "lead" }, "Loading the job");
    this.far = h("p", { class: "muted" });
    this.bar = h("progress", { class: "part", max: "1", value: "0", hidden: true, "aria-label": "Steps" });
    this.buttons = h("div", { class: "buttons", role: "group", "aria-label": "Actions" });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.facts = h("div");
    this.rate = h("p", { class: "note", hidden: true });
    this.cards = new Incidents();
    this.checkpoints = h("div", { class: "panel" }, h("p", { class: "muted" }, "None yet."));
    this.spec = h("div", { class: "panel" }, h("p", { class: "muted" }, "Not known here."));
    this.log = new Log(() => this.#try(() => download(`/v1/jobs/${encodeURIComponent(id)}/logs`, `${id}.log`)));
    this.values = h("div");
    this.details = h("details", { class: "panel", ontoggle: () => this.#table() }, h("summary", null, "The steps as a table"), this.values);
    this.elements = this.#elements();
    this.handlers = {
      open: () => this.log.begin(),
      job: (job) => this.#job(job),
      history: (update) => { this.steps.begin(update); this.#draw(); },
      steps: (update) => { this.steps.add(update); this.#draw(); },
      incidents: (found) => { this.incidents = found; this.cards.show(found); this.#draw(); this.#goToHash(); },
      checkpoints: (found) => this.#checkpoints(found),
      log: ({ text }) => this.log.add(text),
      gone: () => this.#refused(new ApiError(404, "the job was deleted")),
      refused: (error) => this.#refused(error),
    };
  }

  close() {
    for (const chart of this.charts) chart.close();
    this.evaluations.close();
  }

  #elements() {
    const part = (name, title, ...children) => h("section", { "aria-labelledby": name }, h("h2", { id: name }, title), ...children);
    return [
      h("div", { class: "title" }, h("h1", { tabindex: "-1" }, this.id), this.badge),
      this.state, this.bar, this.far, this.buttons, this.problem, this.facts, this.rate,
      part("training", "Training",
        h("p", { class: "muted" }, "Shaded: rolled back. Numbers lead to the incidents. Drag to zoom, double-click to reset."),
        this.controls.element,
        h("div", { class: "grid" }, this.charts.map((chart) => chart.element)), this.details),
      part("evaluation", "Evaluation", this.evaluations.element),
      part("incidents", "Incidents", this.cards.element),
      part("checkpoints", "Checkpoints", this.checkpoints),
      part("spec", "Spec", this.spec),
      part("log", "Log", this.log.element),
    ];
  }

  #job(job) {
    this.job = job;
    this.badge.className = `badge ${tone(job.status)}`;
    setText(this.badge, job.status);
    setText(this.state, state(job));
    this.#progress();
    this.#offer();
    this.#spec(job.spec_parts);
    const running = job.started && !job.ended ? Date.now() / 1000 : job.ended;
    this.facts.replaceChildren(facts([
      ["Submitted", [moment(job.created), job.submitted_by && `by ${job.submitted_by}`].filter(Boolean).join(" ")],
      ["Started", moment(job.started)],
      ["Ended", moment(job.ended)],
      ["Took", job.started && job.ended ? duration(running - job.started) : null],
      ["Exit code", job.exit_code === null ? null : String(job.exit_code)],
      ["Restarts", job.restarts ? `${job.restarts} of ${job.max_restarts}` : null],
      ["Priority", job.priority ? String(job.priority) : null],
      ...Object.entries(job.result?.metrics ?? {}).map(([name, value]) => [sentence(name.replaceAll("_", " ")), number(value)]),
      ["Folder", job.folder],
    ]));
  }

  /** Step, speed, and the time that is left; and the factor on the learning rate where the guard cut it. */
  #progress() {
    const { last, rate } = this.steps;
    const total = this.job?.progress?.total_steps ?? this.job?.spec?.train?.max_steps ?? null;
    const runs = this.job && !ENDED.includes(this.job.status);
    setText(this.far, last ? progress({ step: last.step, total_steps: total }, runs ? rate : null) : "");
    this.bar.hidden = !(last && total);
    if (last && total) this.bar.value = Math.min(1, last.step / total);
    const rateNote = this.#rateNote(last?.rate_factor, last?.rate_advice);
    this.rate.hidden = !rateNote;
    setText(this.rate, rateNote);
  }

  #rateNote(factor, advice) {
    const known = (value) => Number.isFinite(value) && value !== 1;
    if (known(advice)) return `The learning rate is probably about ${number(1 / advice)} times too high: try one ${number(advice)} times as high, or set guard.rate to act.`;
    return known(factor) ? `The learning rate is or was too high: the guard multiplies it by ${number(factor)}.` : "";
  }

  #spec(parts) {
    const key = JSON.stringify(parts);
    if (!parts || key === this.shownSpec) return;
    this.shownSpec = key;
    const text = (yaml) => h("pre", { class: "yaml" }, yaml);
    const whole = parts.changed === parts.whole ? null : h("details", null, h("summary", null, "All of it, with the defaults"), text(parts.whole));
    this.spec.replaceChildren(h("p", { class: "muted" }, "What differs from the defaults."), text(parts.changed), ...(whole ? [whole] : []));
  }

  /** The buttons that apply now and that the scope of the token allows. The focus stays where it was. */
  #offer() {
    const { job } = this;
    const offered = [];
    const ended = ENDED.includes(job.status);
    if (this.app.may("submit")) {
      if (!ended) offered.push(["stop", "Stop", () => this.#stop(), job.status === "stopping"]);
      const goesOn = () => this.#ask("resume", "It continues from its last good checkpoint, with a new budget of restarts.");
      if (ended && job.status !== "succeeded" && job.spec) offered.push(["resume", "Resume", goesOn, false]);
      if (job.spec) offered.push(["clone", "Clone", () => this.app.go(`/submit?like=${encodeURIComponent(job.id)}`), false]);
    }
    const saved = () => download(`/v1/jobs/${encodeURIComponent(this.id)}/report`, `${this.id}.html`);
    offered.push(["report", "Save the report", () => this.#try(saved), false]);
    const key = JSON.stringify(offered.map(([name, , , off]) => [name, off]));
    if (key === this.offered) return;
    this.offered = key;
    const focused = this.buttons.contains(document.activeElement);
    this.buttons.replaceChildren(...offered.map(([name, label, action, off]) =>
      h("button", { class: name === "stop" ? "danger-button" : "plain", id: `do-${name}`, disabled: off, onclick: action }, label)));
    if (focused) (this.buttons.querySelector("button:not([disabled])") ?? this.state).focus();
  }

  #stop() {
    const pending = ["queued", "waiting"].includes(this.job.status);
    return this.#ask("stop", pending ? "It has not started yet." : "It saves its state first, and can be resumed.");
  }

  async #ask(what, detail) {
    if (!(await confirmed(`${sentence(what)} ${this.id}?`, detail, `${sentence(what)} the job`))) return;
    await this.#try(async () => this.#job({ spec_parts: this.job.spec_parts, ...(await call("POST", `/v1/jobs/${encodeURIComponent(this.id)}/${what}`)) }));
  }

  async #try(action) {
    this.problem.textContent = "";
    try {
      await action();
    } catch (error) {
      this.problem.textContent = sentence(error.message);
    }
  }

  #draw() {
    const found = marks(this.incidents.shown);
    const { axis, weight } = this.controls;
    const view = this.steps.over(axis);
    for (const chart of this.charts) chart.show(view, found, weight);
    this.evaluations.show([{ steps: this.steps, view }]);
    this.#progress();
    this.#table();
  }

  #table() {
    if (!this.details.open) return;
    const rows = this.steps.rows.slice(-TABLE_ROWS).reverse().map((row) => ({
      class: row.verdict !== "ok" ? "bad" : null,
      cells: [count(row.attempt), count(row.step), number(row.loss), number(row.grad_norm), number(row.clip_threshold), number(row.lr), row.action],
    }));
    const head = ["Attempt", "Step", "Loss", "Gradient norm", "Clip threshold", "Learning rate", "Action"];
    this.values.replaceChildren(table(`The last ${rows.length} attempts, the newest first`, head, rows));
  }

  #checkpoints({ shown: found, problem }) {
    const rows = [...found].reverse().map((one) => ({
      class: one.health === "damaged" ? "bad" : null,
      cells: [one.name, one.step === null ? "–" : count(one.step), one.problem ? `${one.health}: ${one.problem}` : one.health, moment(one.created) ?? "–", bytes(one.size)],
    }));
    const shown = rows.length ? table("Checkpoints, the newest first", ["Name", "Step", "Health", "Written", "Size"], rows) : h("p", { class: "muted wrap" }, problem ? sentence(problem) : "None yet.");
    this.checkpoints.replaceChildren(shown);
  }

  /** An address that names an incident leads there once it has arrived. */
  #goToHash() {
    if (this.wentToHash || !location.hash.startsWith("#incident-")) return;
    this.wentToHash = true;
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }

  #refused(error) {
    setText(this.state, sentence(error.message));
    this.buttons.replaceChildren();
  }
}
