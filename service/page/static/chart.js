// Line charts in SVG, drawn anew when something arrives.

import { h, s, say } from "/page/dom.js";
import { count, number } from "/page/format.js";

const LEFT = 58;
const RIGHT = 10;
const TOP = 14;
const BOTTOM = 24;
const LOG_FROM = 10; // a scale is logarithmic where the largest value is so many times the smallest
const LEAST_SPAN = 0.02; // of the largest value
const STEPS = [1, 2, 2.5, 5, 10];

/**
 * A chart of columns of the steps of a job over its attempts.
 *
 * lines: { column, label, kind } each, where kind is the class that colours it.
 */
export class Chart {
  constructor(title, lines, height) {
    this.title = title;
    this.lines = lines;
    this.height = height;
    this.rows = [];
    this.rewound = [];
    this.marks = [];
    this.waiting = false;
    this.svg = s("svg", { class: "chart", role: "group", height });
    this.now = h("p", { class: "now" });
    const legend = lines.length > 1 ? lines.map((l) => h("span", { class: "key" }, h("i", { class: l.kind, "aria-hidden": "true" }), l.label)) : [];
    this.element = h("figure", { class: "panel" },
      h("figcaption", null, h("h3", null, title), ...legend, this.now), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#tellNow());
    this.size = new ResizeObserver(() => this.#later());
    this.size.observe(this.svg);
  }

  /** What is to be seen: rows, the spans of attempts that were rewound, and incidents as { attempt, id, anchor, title }. */
  show(rows, rewound, marks) {
    const [first] = this.lines; // a sparse column is measured only on some attempts
    const shown = first.sparse ? rows.filter((row) => Number.isFinite(row[first.column])) : rows;
    Object.assign(this, { rows: shown, rewound, marks });
    this.#later();
  }

  close() {
    this.size.disconnect();
  }

  #later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#draw(); });
  }

  #draw() {
    const width = Math.max(this.svg.clientWidth, 120);
    const focused = this.svg.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("aria-label", this.#words());
    this.#tellNow();
    const values = this.rows.flatMap((row) => this.lines.map((line) => row[line.column])).filter(Number.isFinite);
    if (!values.length) {
      this.svg.replaceChildren(s("text", { x: LEFT, y: this.height / 2, class: "label" }, "Nothing recorded yet"));
      return;
    }
    const y = valueScale(values, this.height - BOTTOM, TOP);
    const x = attemptScale(this.rows, LEFT, width - RIGHT);
    this.x = x;
    this.svg.replaceChildren(
      ...this.rewound.map((span) => shade(span, x, this.height)),
      ...y.ticks.flatMap((tick) => [
        s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y.at(tick), y2: y.at(tick) }),
        s("text", { class: "label end", x: LEFT - 8, y: y.at(tick) + 4 }, y.label(tick)),
      ]),
      ...x.ticks.map((tick) => s("text", { class: "label middle", x: x.at(tick), y: this.height - 6 }, count(tick))),
      ...[...this.lines].reverse().map((line) => s("path", { class: `line ${line.kind}`, d: path(this.rows, line.column, x, y) })),
      ...this.marks.filter((mark) => x.holds(mark.attempt)).map((mark) => this.#mark(mark, x)),
    );
    if (focused) this.svg.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  #mark(mark, x) {
    const place = x.at(mark.attempt);
    return s("a", { href: `#${mark.anchor}`, class: "mark", "aria-label": `Incident ${mark.id}: ${mark.title}` },
      s("line", { x1: place, x2: place, y1: TOP, y2: this.height - BOTTOM }),
      s("circle", { cx: place, cy: TOP - 4, r: 8 }),
      s("text", { x: place, y: TOP, class: "middle" }, String(mark.id)));
  }

  #words() {
    const found = this.rows.map((row) => row[this.lines[0].column]).filter(Number.isFinite);
    if (!found.length) return `${this.title}: nothing recorded yet`;
    const from = `${this.title} went from ${number(found[0])} to ${number(found.at(-1))} in ${count(this.rows.at(-1).attempt)} attempts`;
    const rewound = this.rewound.length ? `; ${this.rewound.length} rewound` : "";
    return `${from}${rewound}; ${this.marks.length} incidents are marked`;
  }

  #tellNow() {
    const row = this.rows.at(-1);
    say(this.now, row ? this.#values(row) : "");
  }

  #point(event) {
    if (!this.x || !this.rows.length) return;
    const box = this.svg.getBoundingClientRect();
    const attempt = this.x.of(event.clientX - box.left);
    const near = this.rows.reduce((best, row) => (Math.abs(row.attempt - attempt) < Math.abs(best.attempt - attempt) ? row : best));
    say(this.now, `attempt ${count(near.attempt)}, step ${count(near.step)}: ${this.#values(near)}`);
  }

  #values(row) {
    if (this.lines.length === 1) return number(row[this.lines[0].column]);
    return this.lines.map((line) => `${line.label} ${Number.isNaN(row[line.column]) && line !== this.lines[0] ? "–" : number(row[line.column])}`).join(", ");
  }
}

/** A small line without axes, of the finite ones among the values. */
export function spark(values, kind, label) {
  const width = 120;
  const height = 28;
  const known = values.filter(Number.isFinite);
  const picture = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" });
  if (known.length < 2) return picture;
  const y = valueScale(known, height - 2, 2);
  const x = { at: (i) => (width * i) / Math.max(1, values.length - 1) };
  const rows = values.map((value, i) => ({ attempt: i, value }));
  picture.append(s("path", { class: `line ${kind}`, d: path(rows, "value", x, y) }));
  return picture;
}

function shade([first, last], x, height) {
  const from = x.at(first - 0.5);
  return s("rect", { class: "rewound", x: from, y: TOP, width: Math.max(2, x.at(last + 0.5) - from), height: height - TOP - BOTTOM },
    s("title", null, `Attempts ${count(first)} to ${count(last)} were rewound`));
}

/** A line with a gap where a value is not finite. */
function path(rows, column, x, y) {
  let pen = "M";
  const parts = [];
  for (const row of rows) {
    const value = row[column];
    if (!Number.isFinite(value)) { pen = "M"; continue; }
    parts.push(`${pen}${x.at(row.attempt).toFixed(1)} ${y.at(value).toFixed(1)}`);
    pen = "L";
  }
  return parts.join("");
}

function attemptScale(rows, left, right) {
  const low = rows[0].attempt;
  const high = Math.max(rows.at(-1).attempt, low + 1);
  const perUnit = (right - left) / (high - low);
  return {
    at: (attempt) => Math.min(right, Math.max(left, left + (attempt - low) * perUnit)),
    of: (place) => low + (place - left) / perUnit,
    holds: (attempt) => attempt >= low && attempt <= high,
    ticks: linearTicks(low, high, Math.max(2, Math.floor((right - left) / 90))).filter(Number.isInteger),
  };
}

function valueScale(values, bottom, top) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const log = low > 0 && high / low > LOG_FROM;
  const turn = log ? Math.log10 : (value) => value;
  // What hardly changes is drawn flat: its smallest movement would fill the picture.
  const least = LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
  const from = turn(low);
  const perUnit = (bottom - top) / (turn(high) - from);
  const ticks = log ? logTicks(low, high) : linearTicks(low, high, 4);
  const digits = ticks.length > 1 ? Math.ceil(Math.log10(Math.abs(ticks.at(-1)) / (ticks[1] - ticks[0]))) + 1 : 3;
  return {
    at: (value) => bottom - (turn(value) - from) * perUnit,
    ticks,
    label: (tick) => (digits > 3 && !log ? String(Number(tick.toPrecision(Math.min(digits, 15)))) : number(tick)),
  };
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * STEPS.find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const factors = decades < 1.5 ? [1, 2, 5] : decades < 3 ? [1, 3] : [1];
  const apart = Math.max(1, Math.ceil(decades / 5));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += apart) {
    ticks.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(6))));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}
