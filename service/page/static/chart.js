// Charts of a job's steps over its attempts: uPlot in the colours of the page, with incidents and rolled-back stretches.

import { h, s } from "/page/dom.js";
import { count, number } from "/page/format.js";

const LOG_FROM = 10; // a scale is logarithmic where the largest value is this many times the smallest
const LEAST_SPAN = 0.02; // of the largest value: what hardly changes is drawn flat
const WHOLE = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // steps between ticks
const darkMode = matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

/** Columns of the steps of a job over its attempts. lines: { column, label, color, dash } each. */
export class Chart {
  constructor(title, lines, height) {
    Object.assign(this, { title, lines, height, rows: [], spans: [], marks: [], plot: null });
    this.shades = h("div");
    this.links = h("div");
    this.box = h("div", { class: "chart", role: "group", "aria-label": title }, h("p", { class: "muted" }, "Nothing recorded yet"));
    this.element = h("figure", { class: "panel" }, h("h3", null, title), this.box);
    this.size = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height }));
    this.size.observe(this.box);
    this.recolor = () => this.plot?.redraw();
    darkMode.addEventListener("change", this.recolor);
  }

  /** Shows rows, the spans of attempts that were rolled back, and incidents as { attempt, id, anchor, title }. */
  show(rows, spans, marks) {
    const [first] = this.lines; // a sparse column is measured only on some attempts
    const shown = first.sparse ? rows.filter((row) => Number.isFinite(row[first.column])) : rows;
    Object.assign(this, { rows: shown, spans, marks });
    this.#overlay();
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#draw(); });
  }

  close() {
    cancelAnimationFrame(this.frame);
    this.size.disconnect();
    darkMode.removeEventListener("change", this.recolor);
    this.plot?.destroy();
  }

  #draw() {
    const columns = this.lines.map(({ column }) => this.rows.map((row) => (Number.isFinite(row[column]) ? row[column] : null)));
    const values = columns.flat().filter((value) => value !== null);
    if (!values.length) return;
    const data = [this.rows.map((row) => row.attempt), ...columns];
    const log = isLog(Math.min(...values), Math.max(...values));
    const zoom = this.#zoom();
    this.plotted = [...this.rows]; // steps may be added or withdrawn before the next drawing
    if (this.plot && log === this.log) this.plot.setData(data);
    else this.#create(data, log);
    if (zoom) this.plot.setScale("x", zoom);
  }

  #create(data, log) {
    this.plot?.destroy();
    this.log = log;
    const axis = { stroke: () => color("muted"), ticks: { show: false }, grid: { stroke: () => color("grid"), width: 1, filter: labelled } };
    const last = (i) => this.plotted.at(i ?? -1);
    this.box.replaceChildren();
    this.plot = new uPlot({
      width: this.box.clientWidth,
      height: this.height,
      padding: [22, 12, 0, 0],
      scales: {
        x: { time: false, range: (u, low, high) => [low, Math.max(high, low + 1)] },
        y: { distr: log ? 3 : 1, range: (u, low, high) => ends(low, high, log) },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 24, space: 50, incrs: WHOLE },
        { ...axis, size: 58, values: (u, ticks, i, space, step) => ticks.map((tick) => label(tick, step, log)) },
      ],
      series: [
        { label: "attempt", value: (u, value, line, i) => `${count(last(i).attempt)}, step ${count(last(i).step)}` },
        ...this.lines.map((line) => ({
          label: line.label, stroke: () => color(line.color), width: 1.6, dash: line.dash,
          value: (u, value, _, i) => number(last(i)[line.column]),
        })),
      ],
      legend: { markers: { stroke: (u, i) => `var(--${this.lines[i - 1].color})`, dash: (u, i) => (this.lines[i - 1].dash ? "dashed" : "solid"), fill: () => "transparent" } },
      cursor: { y: false, sync: { key: "attempts" } },
      hooks: { draw: [() => this.#place()] },
    }, data, this.box);
    this.plot.under.append(this.shades);
    this.plot.over.append(this.links);
  }

  /** Marks and shades are elements: links can be reached with the keyboard, and CSS colours them. */
  #overlay() {
    const key = JSON.stringify([this.spans, this.marks]);
    if (key === this.key) return;
    this.key = key;
    const focused = this.links.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.shades.replaceChildren(...this.spans.map(() => h("div", { class: "rolled-back" })));
    this.links.replaceChildren(...this.marks.map((mark) =>
      h("a", { href: `#${mark.anchor}`, class: "mark", "aria-label": `Incident ${mark.id}: ${mark.title}` }, String(mark.id))));
    if (focused) this.links.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  /** After each drawing: the accessible name, and the places of shades and marks. */
  #place() {
    this.box.setAttribute("aria-label", this.#name());
    const at = (attempt) => this.plot.valToPos(attempt, "x");
    [...this.shades.children].forEach(({ style }, i) => {
      const [from, to] = [at(this.spans[i][0] - 0.5), at(this.spans[i][1] + 0.5)];
      Object.assign(style, { left: `${from}px`, width: `${Math.max(2, to - from)}px` });
    });
    const width = this.plot.over.clientWidth;
    [...this.links.children].forEach((link, i) => {
      const x = at(this.marks[i].attempt);
      link.style.left = `${x}px`;
      link.hidden = !(x >= 0 && x <= width);
    });
  }

  /** The part of the x axis that was zoomed into; null where all is shown. */
  #zoom() {
    const attempts = this.plot?.data[0] ?? [];
    const { min, max } = this.plot?.scales.x ?? {};
    return min > attempts[0] || max < attempts.at(-1) ? { min, max } : null;
  }

  #name() {
    const known = this.plotted.map((row) => row[this.lines[0].column]).filter(Number.isFinite);
    const change = `${this.title} went from ${number(known[0])} to ${number(known.at(-1))} in ${count(this.plotted.at(-1).attempt)} attempts`;
    const zoom = this.#zoom();
    const shown = zoom ? `; attempts ${count(Math.ceil(zoom.min))} to ${count(Math.floor(zoom.max))} are shown` : "";
    return `${change}; ${this.spans.length} rollbacks are shaded and ${this.marks.length} incidents are marked${shown}`;
  }
}

/** A small line without axes, with a gap where a value is not finite. */
export function spark(values, kind, label) {
  const [width, height] = [120, 28];
  const known = values.filter(Number.isFinite);
  const picture = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" });
  if (known.length < 2) return picture;
  const log = isLog(Math.min(...known), Math.max(...known));
  const turn = log ? Math.log10 : (value) => value;
  const [low, high] = ends(Math.min(...known), Math.max(...known), log).map(turn);
  const point = (value, i) => `${((width * i) / (values.length - 1)).toFixed(1)} ${((height * (high - turn(value))) / (high - low)).toFixed(1)}`;
  const path = values.map((value, i) => (Number.isFinite(value) ? `${Number.isFinite(values[i - 1]) ? "L" : "M"}${point(value, i)}` : "")).join("");
  picture.append(s("path", { class: `line ${kind}`, d: path }));
  return picture;
}

function isLog(low, high) {
  return low > 0 && high / low > LOG_FROM;
}

/** Where a value axis begins and ends; a logarithmic one at a round number, from which uPlot counts its ticks. */
function ends(low, high, log) {
  if (low === null) return [low, high];
  const power = 10 ** Math.floor(Math.log10(low));
  if (log) return [power * Math.floor(low / power), high * 1.1];
  const least = LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high)) || 1;
  const room = Math.max(0.05 * (high - low), (least - (high - low)) / 2);
  return [low - room, high + room];
}

/** Grid lines only where there are labels. */
function labelled(u, ticks, i, space, step) {
  return u.axes[i].filter(u, ticks, i, space, step);
}

/** A tick with as many digits as distinguish it from the next. */
function label(tick, step, log) {
  const digits = Math.ceil(Math.log10(Math.abs(tick) / step)) + 1;
  return tick === null ? "" : digits > 3 && !log ? String(Number(tick.toPrecision(Math.min(digits, 15)))) : number(tick);
}
