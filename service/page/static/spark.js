// Small pictures of numbers: a line without axes, and bars.

import { h, s } from "/page/dom.js";

const LOG_FROM = 10; // a scale is logarithmic where the largest value is this many times the smallest
const LEAST_SPAN = 0.02; // of the largest value: what hardly changes is drawn flat

/** A small line without axes, with a gap where a value is not finite. */
export function spark(values, kind, label, [width, height] = [120, 28]) {
  const known = values.filter(Number.isFinite);
  const picture = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" });
  if (known.length < 2) return picture;
  const y = heights(known, height);
  const point = (value, i) => `${((width * i) / (values.length - 1)).toFixed(1)} ${y(value).toFixed(1)}`;
  const path = values.map((value, i) => (Number.isFinite(value) ? `${Number.isFinite(values[i - 1]) ? "L" : "M"}${point(value, i)}` : "")).join("");
  picture.append(s("path", { class: `line ${kind}`, d: path }));
  return picture;
}

/** The values before an incident, each with a text under the pointer; the last one is marked. */
export function windowed(values, texts, kind, label) {
  const [width, height, edge] = [260, 64, 5];
  const known = values.filter(Number.isFinite);
  const picture = s("svg", { class: "window", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const y = known.length ? heights(known, height - 2 * edge) : () => 0;
  const x = (i) => edge + ((width - 2 * edge) * i) / Math.max(1, values.length - 1);
  const path = values.map((value, i) => (Number.isFinite(value) ? `${Number.isFinite(values[i - 1]) ? "L" : "M"}${x(i).toFixed(1)} ${(edge + y(value)).toFixed(1)}` : "")).join("");
  picture.append(s("path", { class: `line ${kind}`, d: path }));
  values.forEach((value, i) => {
    const finite = Number.isFinite(value);
    const last = i === values.length - 1;
    const [cx, cy] = [x(i).toFixed(1), (finite ? edge + y(value) : edge).toFixed(1)];
    picture.append(s("g", { class: last || !finite ? "at bad" : `at ${kind}` },
      s("title", null, texts[i]),
      s("rect", { x: (x(i) - width / values.length / 2).toFixed(1), y: 0, width: (width / values.length).toFixed(1), height, class: "reach" }),
      finite ? s("circle", { cx, cy, r: last ? 4 : 2 }) : s("text", { x: cx, y: height / 4, "text-anchor": "middle" }, "×")));
  });
  return picture;
}

/** Rows as bars: { label, share from 0 to 1, text, bad } each. */
export function bars(title, rows) {
  return h("ul", { class: "bars", "aria-label": title }, rows.map(({ label, share, text, bad }) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.min(1, Math.max(0, share || 0))).toFixed(1)}%`;
    return h("li", { class: bad ? "bad" : null }, h("span", { class: "label" }, label), h("span", { class: "text" }, text), h("span", { class: "rail" }, bar));
  }));
}

export function isLog(low, high) {
  return low > 0 && high / low > LOG_FROM;
}

/** Where a value axis begins and ends; a logarithmic one at a round number, from which uPlot counts its ticks. */
export function ends(low, high, log) {
  if (low === null) return [low, high];
  const power = 10 ** Math.floor(Math.log10(low));
  if (log) return [power * Math.floor(low / power), high * 1.1];
  const least = LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high)) || 1;
  const room = Math.max(0.05 * (high - low), (least - (high - low)) / 2);
  return [low - room, high + room];
}

/** From a value to its distance from the top. */
function heights(known, height) {
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const log = isLog(least, most);
  const turn = log ? Math.log10 : (value) => value;
  const [low, high] = ends(least, most, log).map(turn);
  return (value) => (height * (high - turn(value))) / (high - low);
}
