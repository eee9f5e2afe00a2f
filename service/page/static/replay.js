// A log that is dropped here is read by the service, and the verdicts of the detector are drawn.

import { upload } from "/page/api.js";
import { Chart } from "/page/chart.js";
import { h, setText, table } from "/page/dom.js";
import { count, number, parse, plural, sentence } from "/page/format.js";

const COLUMNS = { step: "Step", loss: "Loss", grad_norm: "Gradient norm" };
const NEAR = 0.04; // of the axis: alarms that are nearer share one mark

export function showReplay(app) {
  app.title("Replay a log");
  if (!app.may("submit")) {
    app.main.append(h("h1", { tabindex: "-1" }, "Replay a log"), h("p", null, "This needs a token with the scope submit; yours can only read."));
    return undefined;
  }
  const view = new Replay();
  app.main.append(...view.elements);
  return () => view.close();
}

class Replay {
  constructor() {
    this.charts = [];
    this.file = h("input", { type: "file", id: "log-file" });
    this.names = Object.fromEntries(Object.keys(COLUMNS).map((name) => [name, h("input", { id: `column-${name}`, autocomplete: "off", spellcheck: "false", maxlength: "200" })]));
    this.status = h("p", { role: "status", class: "muted" });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.result = h("div");
    this.elements = [h("h1", { tabindex: "-1" }, "Replay a log"),
      h("p", { class: "lead" }, "What would the guard's detector have done on your training log? Nothing of it is kept."),
      this.#form(), this.status, this.problem, this.result];
  }

  #form() {
    const columns = Object.entries(COLUMNS).map(([name, title]) => h("div", null, h("label", { for: `column-${name}` }, `${title} column`), this.names[name]));
    const zone = h("div", { class: "panel drop" },
      h("label", { for: "log-file" }, "Drop a log here, or choose one"), this.file,
      h("p", { class: "muted" }, "CSV, TSV, JSON, JSON lines, printed lines (nanoGPT, llm.c, Megatron, torchtitan and others), TensorBoard event files, MLflow metric files; may be compressed."),
      h("details", null, h("summary", null, "Name the columns"), h("div", { class: "fields" }, columns)));
    this.file.addEventListener("change", () => this.#read(this.file.files[0]));
    for (const input of Object.values(this.names)) input.addEventListener("change", () => this.#read(this.last));
    for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
    for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => { event.preventDefault(); this.#read(event.dataTransfer.files[0]); });
    return zone;
  }

  async #read(file) {
    if (!file) return;
    this.last = file;
    this.problem.textContent = "";
    setText(this.status, `Reading ${file.name}`);
    this.close();
    this.result.replaceChildren();
    const query = new URLSearchParams({ name: file.name.slice(-200) });
    for (const [name, input] of Object.entries(this.names)) if (input.value.trim()) query.set(name, input.value.trim());
    try {
      const found = await upload(`/v1/replay?${query}`, file, "application/octet-stream");
      if (this.last === file) this.#show(file.name, found);
    } catch (error) {
      setText(this.status, "");
      this.problem.textContent = sentence(error.message);
    }
  }

  close() {
    for (const chart of this.charts) chart.close();
    this.charts = [];
  }

  #show(name, found) {
    setText(this.status, `${name}: ${found.taken_for}.`);
    const rows = found.columns.step.map((step, i) => ({ x: parse(step), loss: parse(found.columns.loss[i]), grad_norm: parse(found.columns.grad_norm[i]) }));
    rows.sort((a, b) => a.x - b.x);
    const view = { axis: "step", rows, spans: [], at: (step) => step, say: (row) => count(row.x) };
    const marks = grouped(found.shown, (rows.at(-1).x - rows[0].x) * NEAR);
    const lines = [["Loss", "loss", "loss"], ["Gradient norm", "grad_norm", "norm"]];
    this.charts = lines.filter(([, column]) => rows.some((row) => Number.isFinite(row[column]))).map(([title, column, color]) => new Chart(title, [{ column, label: title.toLowerCase(), color }], 220));
    const words = `${plural(found.alarms, "alarm")}, ${plural(found.suspects, "suspect row")} (each a skip or a clip), ${plural(found.trends, "trend")}.`;
    this.result.replaceChildren(
      h("section", { "aria-labelledby": "verdicts" }, h("h2", { id: "verdicts" }, "Verdicts"), h("p", { class: "lead" }, words), h("p", { class: "muted" }, `${sentence(found.blindness)}.`),
        this.charts.map((chart) => chart.element), this.#alarms(found)));
    for (const chart of this.charts) chart.show(view, marks);
  }

  #alarms({ shown, alarms, trends }) {
    if (!shown.length) return h("p", { class: "panel" }, "No alarm: the guard would have let this run train.");
    const rows = shown.map((one, i) => ({ cells: [h("span", { id: `alarm-${i + 1}` }, String(i + 1)), count(one.step), one.verdict, one.signal.replaceAll("_", " "), number(one.score), one.baseline === null ? "–" : number(one.baseline), one.would] }));
    const left = alarms + trends - shown.length;
    return h("div", { class: "panel" }, table("Alarms, by step", ["No.", "Step", "Verdict", "Signal", "Score", "Baseline", "Guard would"], rows),
      left > 0 ? h("p", { class: "muted" }, `and ${count(left)} more`) : null);
  }
}

/** Marks of the alarms; neighbours share one, such as 3–7, that leads to the first. */
function grouped(alarms, near) {
  const groups = [];
  alarms.forEach((one, i) => {
    const last = groups.at(-1);
    if (last && one.step - last.from.step < near) last.end = i + 1;
    else groups.push({ from: one, start: i + 1, end: i + 1 });
  });
  return groups.map(({ from, start, end }) => {
    const text = start === end ? String(start) : `${start}–${end}`;
    return { attempt: from.step, anchor: `alarm-${start}`, text, label: `Alarm ${text}: ${from.verdict} at step ${from.step}` };
  });
}
