// Line charts: uPlot in the colours of the page, with marks that are links and shaded stretches.

import { h } from "/page/dom.js";
import { count, number, stretch } from "/page/format.js";
import { AXES, smoothed } from "/page/series.js";
import { ends, isLog } from "/page/spark.js";

const WHOLE = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // steps between ticks
const SECONDS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800];
const FAINT = "55"; // alpha of the values behind their average
const darkMode = matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Columns of rows over x. lines: { column, label, color, dash, sparse, smooth, points } each. */
export class Chart {
  constructor(title, lines, height) {
    Object.assign(this, { title, lines, height, view: null, marks: [], weight: 0, plot: null });
    this.shades = h("div");
    this.links = h("div");
    this.box = h("div", { class: "chart", role: "group", "aria-label": title }, h("p", { class: "muted" }, "Nothing recorded yet"));
    this.element = h("figure", { class: "panel" }, h("h3", null, title), this.box);
    this.size = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height }));
    this.size.observe(this.box);
    this.recolor = () => this.plot?.redraw();
    darkMode.addEventListener("change", this.recolor);
  }

  /** Shows a view { axis, rows, spans, at, say } with incidents as { attempt, anchor, label, text }. */
  show(view, marks, weight = 0) {
    const [first] = this.lines; // a sparse column is measured only on some attempts
    const rows = first.sparse ? view.rows.filter((row) => Number.isFinite(row[first.column])) : view.rows;
    Object.assign(this, { view: { ...view, rows }, marks, weight });
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
    const { rows, axis } = this.view;
    const columns = this.lines.map(({ column }) => rows.map((row) => (Number.isFinite(row[column]) ? row[column] : null)));
    const values = columns.flat().filter((value) => value !== null);
    if (!values.length) return;
    const averages = this.lines.flatMap((line, i) => (this.#averaged(line) ? [smoothed(columns[i], this.weight)] : []));
    const data = [rows.map((row) => row.x), ...columns, ...averages];
    const kind = JSON.stringify([axis, isLog(Math.min(...values), Math.max(...values)), this.weight > 0]);
    const zoom = axis === this.axis ? this.#zoom() : null;
    this.plotted = [...rows]; // steps may be added or withdrawn before the next drawing
    if (this.plot && kind === this.kind) this.plot.setData(data);
    else this.#create(data, kind);
    this.axis = axis;
    if (zoom) this.plot.setScale("x", zoom);
  }

  #averaged(line) {
    return this.weight > 0 && line.smooth;
  }

  #create(data, kind) {
    this.plot?.destroy();
    this.kind = kind;
    const [axis, log] = JSON.parse(kind);
    const shown = { stroke: () => color("muted"), ticks: { show: false }, grid: { stroke: () => color("grid"), width: 1, filter: labelled } };
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
        { ...shown, grid: { show: false }, size: 24, space: 54, incrs: axis === "time" ? SECONDS : WHOLE, ...(axis === "time" ? { values: (u, ticks) => ticks.map(stretch) } : {}) },
        { ...shown, size: 58, values: (u, ticks, i, space, step) => ticks.map((tick) => label(tick, step, log)) },
      ],
      series: this.#series(axis),
      legend: { markers: { stroke: (u, i) => `var(--${this.#line(i).color})`, dash: (u, i) => (this.#line(i).dash ? "dashed" : "solid"), fill: () => "transparent" } },
      cursor: { y: false, sync: { key: axis } },
      hooks: { draw: [() => this.#place()] },
    }, data, this.box);
    this.plot.under.append(this.shades);
    this.plot.over.append(this.links);
  }

  #series(axis) {
    const row = (i) => this.plotted[i ?? -1] ?? this.plotted.at(-1); // the pointer may be beyond newer, shorter data
    const average = this.lines.filter((line) => this.#averaged(line));
    return [
      { label: axis, value: (u, value, line, i) => this.view.say(row(i)) },
      ...this.lines.map((line) => ({
        label: line.label, width: this.#averaged(line) ? 1 : 1.6, dash: line.dash, spanGaps: Boolean(line.joined),
        stroke: () => color(line.color) + (this.#averaged(line) ? FAINT : ""),
        points: line.points ? { show: true, size: 6, fill: () => color(line.color) } : {},
        value: (u, value, _, i) => number(row(i)[line.column]),
      })),
      ...average.map((line) => ({
        label: `${line.label}, smoothed`, width: 1.8, spanGaps: true, stroke: () => color(line.color), points: { show: false },
        value: (u, value, n, i) => number(value ?? u.data[n].at(i ?? -1)),
      })),
    ];
  }

  /** The line of a series of the plot: the averages come after all lines. */
  #line(i) {
    return this.lines[i - 1] ?? this.lines.filter((line) => this.#averaged(line))[i - 1 - this.lines.length];
  }

  /** Marks and shades are elements: links can be reached with the keyboard, and CSS colours them. */
  #overlay() {
    const key = JSON.stringify([this.view.spans.length, this.marks]);
    if (key === this.key) return;
    this.key = key;
    const focused = this.links.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.shades.replaceChildren(...this.view.spans.map(() => h("div", { class: "rolled-back" })));
    this.links.replaceChildren(...this.marks.map((mark) => h("a", { href: `#${mark.anchor}`, class: "mark", "aria-label": mark.label }, mark.text)));
    if (focused) this.links.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  /** After each drawing: the accessible name, and the places of shades and marks. */
  #place() {
    this.box.setAttribute("aria-label", this.#name());
    const to = (x) => this.plot.valToPos(x, "x");
    [...this.shades.children].forEach(({ style }, i) => {
      const [from, end] = this.view.spans[i].map(to);
      Object.assign(style, { left: `${from}px`, width: `${Math.max(2, end - from)}px` });
    });
    const width = this.plot.over.clientWidth;
    [...this.links.children].forEach((link, i) => {
      const x = to(this.view.at(this.marks[i].attempt));
      link.style.left = `${x}px`;
      link.hidden = !(x >= 0 && x <= width);
    });
  }

  /** The part of the x axis that was zoomed into; null where all is shown. */
  #zoom() {
    const places = this.plot?.data[0] ?? [];
    const { min, max } = this.plot?.scales.x ?? {};
    return min > places[0] || max < places.at(-1) ? { min, max } : null;
  }

  #name() {
    const known = this.plotted.map((row) => row[this.lines[0].column]).filter(Number.isFinite);
    const [words, last] = [AXES[this.view.axis], this.plotted.at(-1).x];
    const change = `${this.title} went from ${number(known[0])} to ${number(known.at(-1))} in ${count(Math.round(last))} ${words}`;
    const zoom = this.#zoom();
    const shown = zoom ? `; ${words} ${count(Math.ceil(zoom.min))} to ${count(Math.floor(zoom.max))} are shown` : "";
    return `${change}; ${this.view.spans.length} rollbacks are shaded and ${this.marks.length} incidents are marked${shown}`;
  }
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
