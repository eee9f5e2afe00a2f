// How full the cluster is, and what waits for it.

import { call } from "/page/api.js";
import { h } from "/page/dom.js";
import { count, duration, number, plural } from "/page/format.js";
import { bars } from "/page/spark.js";

const EVERY_MS = 10_000;
const SHOWN = 5;

export class ClusterPanel {
  constructor() {
    this.element = h("section", { class: "panel cluster", "aria-label": "Cluster and queue", hidden: true });
  }

  begin() {
    clearTimeout(this.timer);
    this.closed = false;
    this.#ask();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }

  async #ask() {
    try {
      if (!document.hidden) this.#show(await call("GET", "/v1/cluster"));
    } catch {
      this.element.hidden = true; // the list itself says what is wrong
    }
    if (!this.closed) this.timer = setTimeout(() => this.#ask(), EVERY_MS);
  }

  #show(cluster) {
    const drawn = JSON.stringify(cluster);
    if (drawn === this.drawn || this.closed) return;
    this.drawn = drawn;
    this.element.hidden = false;
    const { nodes, resources, problem, training, waiting, queue } = cluster;
    const used = resources.map(({ name, total, used: busy }) => ({ label: name, share: busy / total, text: `${number(busy)} of ${number(total)} in use` }));
    this.element.replaceChildren(
      h("div", null, h("h2", null, "Cluster"),
        used.length ? bars("Resources in use", used) : h("p", { class: "muted" }, problem),
        nodes ? h("p", { class: "muted" }, plural(nodes, "node")) : null),
      h("div", null, h("h2", null, "Queue"),
        h("p", { class: "muted" }, `${count(training)} training, ${count(waiting)} waiting`),
        queue.length ? h("ol", { class: "queue" }, queue.slice(0, SHOWN).map(waits)) : null,
        waiting > SHOWN ? h("p", { class: "muted" }, `and ${count(waiting - SHOWN)} more`) : null));
  }
}

function waits({ id, priority, reason, created, submitted_by: owner }) {
  const details = [reason, priority && `priority ${priority}`, owner && `by ${owner}`, `for ${duration(Date.now() / 1000 - created) ?? "0 s"}`];
  return h("li", null, h("a", { href: `/jobs/${id}` }, id), h("span", { class: "muted" }, ` ${details.filter(Boolean).join(" · ")}`));
}
