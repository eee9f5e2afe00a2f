// The end of a job's log, as it is printed.

import { h } from "/page/dom.js";

const KEPT = 200_000;

export class Log {
  constructor() {
    this.text = "";
    this.box = h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Output of the job" });
    this.follows = h("input", { type: "checkbox", id: "follow", checked: true });
    this.follows.addEventListener("change", () => this.#end());
    this.element = h("div", { class: "panel" },
      h("label", { class: "check" }, this.follows, "Follow the log"), this.box);
    // Scrolling up stops following; the checkbox starts it again.
    this.box.addEventListener("scroll", () => {
      const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
      if (!atEnd && this.moved) this.follows.checked = false;
    });
    for (const kind of ["wheel", "pointerdown", "keydown", "touchmove"]) {
      this.box.addEventListener(kind, () => { this.moved = true; }, { passive: true });
    }
    this.box.textContent = "Nothing printed yet.";
  }

  begin() {
    this.text = "";
  }

  add(text) {
    this.text = (this.text + text).slice(-KEPT);
    this.box.textContent = lines(this.text);
    this.#end();
  }

  #end() {
    if (!this.follows.checked) return;
    this.moved = false;
    this.box.scrollTop = this.box.scrollHeight;
  }
}

/** Of a line that was overwritten, as progress bars do, the last state is shown; colour codes are removed. */
function lines(text) {
  const plain = text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
  return plain.replace(/\r+\n/g, "\n").split("\n").map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1)).join("\n");
}
