// The list of jobs: a table to sort, of which two are chosen to be compared.

import { follow } from "/page/api.js";
import { ClusterPanel } from "/page/cluster.js";
import { h, setText } from "/page/dom.js";
import { count, duration, moment, number, parse, plural, state, steps, tone } from "/page/format.js";
import { spark } from "/page/spark.js";

const GROUPS = {
  "": ["All", []],
  active: ["Running", ["starting", "running", "stopping"]],
  pending: ["Waiting", ["queued", "waiting"]],
  ended: ["Ended", ["stopped", "succeeded", "failed", "halted"]],
  trouble: ["Failed or halted", ["failed", "halted"]],
};
const AT_ONCE = 50;
const MOST = 500;
const TYPING_MS = 250;
const now = () => Date.now() / 1000;
const took = (job) => (job.started ? (job.ended ?? now()) - job.started : null);
const done = ({ progress }) => (progress?.total_steps ? progress.step / progress.total_steps : null);

/** The columns: title, what it is sorted by, and what a cell shows. The first click sorts downwards. */
const COLUMNS = [
  ["Job", (job) => job.id],
  ["Status", (job) => job.status],
  ["Progress", (job) => done(job) ?? job.progress?.step ?? null],
  ["Loss", (job) => parse(job.progress?.loss)],
  ["Gradient norm", (job) => parse(job.progress?.grad_norm)],
  ["Accuracy", (job) => job.accuracy],
  ["Incidents", (job) => job.incidents],
  ["Duration", took],
  ["Owner", (job) => job.submitted_by],
  ["Created", (job) => job.created],
];
const NUMBERS = ["Accuracy", "Incidents", "Duration"];

export function showList(app) {
  app.title("Jobs");
  const list = new JobTable(app);
  app.main.append(...list.elements);
  list.begin();
  return () => list.close();
}

class JobTable {
  constructor(app) {
    const asked = new URLSearchParams(location.search);
    const group = asked.get("show") in GROUPS ? asked.get("show") : "";
    Object.assign(this, { app, items: new Map(), order: [], limit: AT_ONCE, stop: () => {}, chosen: [] });
    this.sort = COLUMNS.findIndex(([name]) => name === asked.get("sort"));
    this.down = asked.get("order") !== "up";
    this.which = h("select", { id: "show" }, Object.entries(GROUPS).map(([key, [label]]) => h("option", { value: key, selected: key === group }, label)));
    this.name = h("input", { id: "name", type: "search", value: asked.get("name") ?? "", autocomplete: "off", spellcheck: "false", pattern: "[A-Za-z0-9_.\\-]*" });
    this.status = h("p", { role: "status", class: "muted" }, "Loading jobs");
    this.compare = h("button", { type: "button", class: "plain", disabled: true, onclick: () => this.#compare() }, "Compare");
    this.more = h("button", { class: "plain", hidden: true, onclick: () => { this.limit = Math.min(MOST, this.limit + AT_ONCE); this.begin(); } }, "Show more");
    this.cluster = new ClusterPanel();
    this.heads = COLUMNS.map(([name], i) => h("th", { scope: "col", class: NUMBERS.includes(name) ? "number" : null }, h("button", { class: "sort", onclick: () => this.#sortBy(i) }, name)));
    this.body = h("tbody");
    this.elements = this.#elements();
    this.#showSort();
  }

  #elements() {
    this.which.addEventListener("change", () => this.#filter());
    this.name.addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(() => this.#filter(), TYPING_MS); });
    const form = h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); this.#filter(); } },
      h("div", null, h("label", { for: "show" }, "Show"), this.which),
      h("div", null, h("label", { for: "name" }, "Name contains"), this.name),
      this.compare);
    const table = h("table", { class: "jobs" }, h("caption", { class: "hidden" }, "Jobs"),
      h("thead", null, h("tr", null, h("td", null), this.heads)), this.body);
    return [h("h1", { tabindex: "-1" }, "Jobs"), this.cluster.element, form, this.status, h("div", { class: "table" }, table), this.more];
  }

  begin() {
    this.stop();
    const query = new URLSearchParams({ limit: this.limit });
    for (const wanted of GROUPS[this.which.value][1]) query.append("status", wanted);
    if (this.name.value) query.set("name", this.name.value);
    const refused = (error) => setText(this.status, error.message);
    this.stop = follow(`/v1/live?${query}`, { jobs: (update) => this.#update(update), refused }, this.app.connected);
    this.cluster.begin();
  }

  close() {
    clearTimeout(this.typing);
    this.cluster.close();
    this.stop();
  }

  #update({ order, changed, more }) {
    for (const job of changed) {
      if (!this.items.has(job.id)) this.items.set(job.id, new Row((id, yes) => this.#choose(id, yes)));
      this.items.get(job.id).show(job);
    }
    this.order = order;
    this.#arrange();
    setText(this.status, order.length ? `${plural(order.length, "job")}${more ? ", and more" : ""}` : this.#nothing());
    this.more.hidden = !more || this.limit >= MOST;
  }

  /** Rows in their order; what is unknown comes last. Only rows that change their place are moved. */
  #arrange() {
    const items = this.order.map((id) => this.items.get(id));
    if (this.sort >= 0) items.sort((a, b) => ordered(COLUMNS[this.sort][1](a.job), COLUMNS[this.sort][1](b.job), this.down));
    items.forEach(({ element }, i) => { if (this.body.children[i] !== element) this.body.insertBefore(element, this.body.children[i] ?? null); });
    while (this.body.children.length > items.length) this.body.lastChild.remove();
  }

  #sortBy(i) {
    this.down = i === this.sort ? !this.down : true;
    this.sort = i;
    this.#showSort();
    this.#arrange();
    this.#address();
  }

  #showSort() {
    this.heads.forEach((head, i) => {
      if (i === this.sort) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  /** At most two are chosen: a third one takes the place of the first. */
  #choose(id, yes) {
    this.chosen = [...this.chosen.filter((one) => one !== id), ...(yes ? [id] : [])].slice(-2);
    for (const [one, row] of this.items) row.check.checked = this.chosen.includes(one);
    this.compare.disabled = this.chosen.length !== 2;
    setText(this.compare, this.chosen.length === 1 ? "Compare: choose one more" : "Compare");
  }

  #compare() {
    const [a, b] = this.chosen;
    this.app.go(`/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
  }

  #nothing() {
    if (this.which.value || this.name.value) return "No job matches.";
    return this.app.may("submit") ? "No jobs yet: submit one." : "No jobs yet.";
  }

  #filter() {
    clearTimeout(this.typing);
    if (!this.name.checkValidity()) return setText(this.status, "A name has letters, digits and _ . - only.");
    this.#address();
    this.limit = AT_ONCE;
    return this.begin();
  }

  #address() {
    const query = new URLSearchParams();
    if (this.which.value) query.set("show", this.which.value);
    if (this.name.value) query.set("name", this.name.value);
    if (this.sort >= 0) query.set("sort", COLUMNS[this.sort][0]);
    if (this.sort >= 0 && !this.down) query.set("order", "up");
    history.replaceState(null, "", query.size ? `/?${query}` : "/");
  }
}

function ordered(a, b, down) {
  const unknown = (value) => value === null || value === undefined || Number.isNaN(value);
  if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
  const less = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -less : less;
}

/** One job of the list; only what has changed is redrawn. */
class Row {
  constructor(choose) {
    this.check = h("input", { type: "checkbox", onchange: () => choose(this.job.id, this.check.checked) });
    this.link = h("a", { class: "name" });
    this.reason = h("p", { class: "reason" });
    this.badge = h("span", { class: "badge" });
    this.bar = h("progress", { class: "part", max: "1", value: "0" });
    this.far = h("span", { class: "far" });
    this.sparks = { loss: h("div", { class: "trend" }), grad_norm: h("div", { class: "trend" }) };
    this.plain = Object.fromEntries(COLUMNS.slice(5).map(([name]) => [name, h("td", { class: NUMBERS.includes(name) ? "number" : "text", "data-name": name })]));
    const cell = (name, ...children) => h("td", { "data-name": name }, ...children);
    this.element = h("tr", { class: "job" }, h("td", { class: "choice" }, this.check),
      h("th", { scope: "row" }, this.link, this.reason), cell("Status", this.badge), cell("Progress", this.far, this.bar),
      cell("Loss", this.sparks.loss), cell("Gradient norm", this.sparks.grad_norm), Object.values(this.plain));
  }

  show(job) {
    this.job = job;
    this.check.setAttribute("aria-label", `Choose ${job.id} to compare`);
    this.link.setAttribute("href", `/jobs/${job.id}`);
    setText(this.link, job.id);
    this.badge.className = `badge ${tone(job.status)}`;
    setText(this.badge, job.status);
    setText(this.reason, job.reason ? state(job) : "");
    this.#progress(job);
    this.#spark("loss", "Loss", "loss");
    this.#spark("grad_norm", "Gradient norm", "norm");
    setText(this.plain.Accuracy, job.accuracy === null ? "–" : `${(100 * job.accuracy).toFixed(1)} %`);
    setText(this.plain.Incidents, count(job.incidents));
    this.plain.Incidents.classList.toggle("bad", job.incidents > 0);
    setText(this.plain.Duration, duration(took(job) ?? NaN) ?? "–");
    setText(this.plain.Owner, job.submitted_by || "–");
    setText(this.plain.Created, moment(job.created) ?? "–");
  }

  #progress(job) {
    setText(this.far, steps(job.progress) || "–");
    this.bar.hidden = done(job) === null;
    this.bar.value = Math.min(1, done(job) ?? 0);
    this.bar.setAttribute("aria-label", `Progress of ${job.id}`);
  }

  #spark(column, label, kind) {
    const values = this.job.spark?.[column] ?? [];
    const drawn = JSON.stringify(values);
    const place = this.sparks[column];
    if (drawn === place.dataset.drawn) return;
    place.dataset.drawn = drawn;
    const last = number(values.at(-1));
    place.replaceChildren(...(values.length ? [spark(values.map(parse), kind, `${label}, recent; now ${last}`), h("b", null, last)] : ["–"]));
  }
}
