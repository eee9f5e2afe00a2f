// The end of a job's log: with search, levels, and the lines for machines folded.

import { h, setText } from "/page/dom.js";
import { plural } from "/page/format.js";

const KEPT = 200_000;
const MOST_LINES = 4000;
const MACHINE = /^(status phase=|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s+\w+ \w+\.py:\d+ -- |Running entrypoint for job )/;
const ERROR = /^[\d:.\s-]*(error|critical|fatal)\b|\b(ERROR|CRITICAL|FATAL)\b|^Traceback \(|\w(Error|Exception): /;
const WARNING = /^[\d:.\s-]*warning\b|\bWARN(ING)?\b|Warning: /;
const LEVELS = { all: "All", warning: "Warnings and errors", error: "Errors" };

export class Log {
  constructor(save) {
    this.text = "";
    this.box = h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Output of the job" }, "Nothing printed yet.");
    this.follows = h("input", { type: "checkbox", id: "follow", checked: true });
    this.search = h("input", { type: "search", id: "log-search", autocomplete: "off", spellcheck: "false" });
    this.level = h("select", { id: "log-level" }, Object.entries(LEVELS).map(([value, name]) => h("option", { value }, name)));
    this.found = h("p", { class: "muted", role: "status" });
    this.element = h("div", { class: "panel" },
      h("div", { class: "controls" },
        h("div", null, h("label", { for: "log-search" }, "Search"), this.search),
        h("div", null, h("label", { for: "log-level" }, "Level"), this.level),
        h("label", { class: "check" }, this.follows, "Follow the log"),
        h("button", { class: "plain", type: "button", onclick: save }, "Save the log")),
      this.found, this.box);
    this.follows.addEventListener("change", () => this.#end());
    this.search.addEventListener("input", () => this.#draw());
    this.level.addEventListener("change", () => this.#draw());
    // Scrolling up stops following; the checkbox starts it again.
    this.box.addEventListener("scroll", () => {
      const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
      if (!atEnd && this.moved) this.follows.checked = false;
    });
    for (const kind of ["wheel", "pointerdown", "keydown", "touchmove"]) {
      this.box.addEventListener(kind, () => { this.moved = true; }, { passive: true });
    }
  }

  begin() {
    this.text = "";
  }

  add(text) {
    this.text = (this.text + text).slice(-KEPT);
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#draw(); });
  }

  #draw() {
    const all = lines(this.text);
    const wanted = this.search.value.toLowerCase();
    const level = this.level.value;
    const filtered = wanted !== "" || level !== "all";
    const fits = (line) => line.toLowerCase().includes(wanted) && (level === "all" || kind(line) === "error" || kind(line) === level);
    const shown = (filtered ? all.filter((line) => line && fits(line)) : all).slice(-MOST_LINES);
    const open = new Set([...this.box.querySelectorAll("details[open] > summary")].map((summary) => summary.dataset.first));
    this.box.replaceChildren(...(filtered ? shown.map(element) : folded(shown, open)));
    setText(this.found, filtered ? `${plural(shown.length, "line")} of the last ${all.length}` : "");
    this.#end();
  }

  #end() {
    if (!this.follows.checked) return;
    this.moved = false;
    this.box.scrollTop = this.box.scrollHeight;
  }
}

/** Elements of lines; neighbours that are written for machines are one that opens. */
function folded(shown, open) {
  const parts = [];
  let machine = [];
  const close = () => {
    if (machine.length) parts.push(fold(machine, open));
    machine = [];
  };
  shown.forEach((line, i) => {
    if (MACHINE.test(line)) return machine.push(line);
    close();
    if (line || i < shown.length - 1) parts.push(element(line));
    return undefined;
  });
  close();
  return parts;
}

function fold(machine, open) {
  const last = machine.at(-1).match(/\bstep=\S+/)?.[0] ?? machine.at(-1).slice(0, 60);
  const summary = h("summary", { "data-first": machine[0] }, `${plural(machine.length, "line")} for machines: ${last}`);
  return h("details", { open: open.has(machine[0]) }, summary, machine.map(element));
}

function element(line) {
  return h("span", { class: `log-line is-${kind(line)}` }, `${line}\n`);
}

function kind(line) {
  return ERROR.test(line) ? "error" : WARNING.test(line) ? "warning" : "info";
}

/** Of a line that was overwritten, as progress bars do, the last state is shown; colour codes are removed. */
function lines(text) {
  const plain = text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
  return plain.replace(/\r+\n/g, "\n").split("\n").map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1));
}
