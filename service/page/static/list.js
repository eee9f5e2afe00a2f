// The list of jobs: the state of each, and its recent loss and gradient norm.

import { follow } from "/page/api.js";
import { spark } from "/page/chart.js";
import { h, setText } from "/page/dom.js";
import { moment, number, parse, plural, state, steps, tone } from "/page/format.js";

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

export function showList(app) {
  app.title("Jobs");
  const asked = new URLSearchParams(location.search);
  const group = asked.get("show") in GROUPS ? asked.get("show") : "";
  const items = new Map();
  let limit = AT_ONCE;
  let stop = () => {};

  const which = h("select", { id: "show" }, Object.entries(GROUPS).map(([key, [label]]) => h("option", { value: key, selected: key === group }, label)));
  const name = h("input", { id: "name", type: "search", value: asked.get("name") ?? "", autocomplete: "off", spellcheck: "false", pattern: "[A-Za-z0-9_.\\-]*" });
  const status = h("p", { role: "status", class: "muted" }, "Loading jobs");
  const list = h("ul", { class: "jobs", "aria-label": "Jobs" });
  const more = h("button", { class: "plain", hidden: true, onclick: () => { limit = Math.min(MOST, limit + AT_ONCE); begin(); } }, "Show more");

  function update({ order, changed, more: thereIsMore }) {
    for (const job of changed) items.has(job.id) ? items.get(job.id).show(job) : items.set(job.id, new Item(job));
    const wanted = order.map((id) => items.get(id).element);
    wanted.forEach((element, i) => { if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null); });
    while (list.children.length > wanted.length) list.lastChild.remove();
    setText(status, order.length ? `${plural(order.length, "job")}${thereIsMore ? ", and more" : ""}` : nothing());
    more.hidden = !thereIsMore || limit >= MOST;
  }

  function nothing() {
    if (which.value || name.value) return "No job matches.";
    return app.may("submit") ? "No jobs yet: submit one." : "No jobs yet.";
  }

  function begin() {
    stop();
    const query = new URLSearchParams({ limit });
    for (const wanted of GROUPS[which.value][1]) query.append("status", wanted);
    if (name.value) query.set("name", name.value);
    const refused = (error) => setText(status, error.message);
    stop = follow(`/v1/live?${query}`, { jobs: update, refused }, app.connected);
  }

  let typing;
  function filter() {
    clearTimeout(typing);
    if (!name.checkValidity()) return setText(status, "A name has letters, digits and _ . - only.");
    const query = new URLSearchParams();
    if (which.value) query.set("show", which.value);
    if (name.value) query.set("name", name.value);
    history.replaceState(null, "", query.size ? `/?${query}` : "/");
    limit = AT_ONCE;
    begin();
  }

  which.addEventListener("change", filter);
  name.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filter, TYPING_MS); });
  const form = h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); filter(); } },
    h("div", null, h("label", { for: "show" }, "Show"), which),
    h("div", null, h("label", { for: "name" }, "Name contains"), name));
  app.main.append(h("h1", { tabindex: "-1" }, "Jobs"), form, status, list, more);
  begin();
  return () => { clearTimeout(typing); stop(); };
}

/** One job of the list; only what has changed is redrawn. */
class Item {
  constructor(job) {
    this.badge = h("span", { class: "badge" });
    this.reason = h("p", { class: "reason" });
    this.far = h("p", { class: "far muted" });
    this.sparks = h("div", { class: "sparks" });
    this.drawn = "";
    this.element = h("li", { class: "job" },
      h("div", { class: "what" }, h("a", { href: `/jobs/${job.id}`, class: "name" }, job.id), this.badge, this.reason),
      this.far, this.sparks);
    this.show(job);
  }

  show(job) {
    this.badge.className = `badge ${tone(job.status)}`;
    setText(this.badge, job.status);
    setText(this.reason, job.reason ? state(job) : "");
    setText(this.far, [steps(job.progress), job.submitted_by && `by ${job.submitted_by}`, moment(job.created)].filter(Boolean).join(" · "));
    const drawn = JSON.stringify(job.spark);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.sparks.replaceChildren(...(job.spark ? [small("Loss", job.spark.loss, "loss"), small("Gradient norm", job.spark.grad_norm, "norm")] : []));
  }
}

function small(label, values, kind) {
  const now = number(values.at(-1));
  return h("figure", null, spark(values.map(parse), kind, `${label}, recent; now ${now}`),
    h("figcaption", null, `${label} `, h("b", null, now)));
}
