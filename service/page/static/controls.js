// What applies to all charts of a view: the x axis and the smoothing. Both are kept in the address.

import { h } from "/page/dom.js";

const NAMES = { attempt: "Attempt", step: "Step", time: "Time" };

export class Controls {
  constructor(axes, changed) {
    const asked = new URLSearchParams(location.search);
    this.axis = axes.includes(asked.get("x")) ? asked.get("x") : axes[0];
    this.weight = Math.min(0.99, Math.max(0, Number(asked.get("smooth")) || 0));
    const choice = h("select", { id: "axis" }, axes.map((axis) => h("option", { value: axis, selected: axis === this.axis }, NAMES[axis])));
    const shown = h("output", { for: "smooth" }, this.weight.toFixed(2));
    const slider = h("input", { id: "smooth", type: "range", min: "0", max: "0.99", step: "0.01", value: String(this.weight) });
    choice.addEventListener("change", () => { this.axis = choice.value; this.#keep(axes[0]); changed(); });
    slider.addEventListener("input", () => { this.weight = Number(slider.value); shown.textContent = this.weight.toFixed(2); changed(); });
    slider.addEventListener("change", () => this.#keep(axes[0]));
    this.element = h("div", { class: "controls" },
      h("div", null, h("label", { for: "axis" }, "X axis"), choice),
      h("div", null, h("label", { for: "smooth" }, "Smoothing ", shown), slider));
  }

  #keep(usual) {
    const query = new URLSearchParams(location.search);
    const set = (name, value, idle) => (value === idle ? query.delete(name) : query.set(name, value));
    set("x", this.axis, usual);
    set("smooth", String(this.weight), "0");
    history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
  }
}
