// Numbers, times and names as text.

/** A number of the API: "nan", "inf" and "-inf" are text there; what is missing is NaN. */
export function parse(value) {
  if (typeof value === "number") return value;
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : NaN;
}

/** Three significant digits: 0.412, 1,204, 3.1e-7. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const known = parse(value);
  if (Number.isNaN(known)) return "NaN";
  if (!Number.isFinite(known)) return known > 0 ? "infinite" : "minus infinite";
  const size = Math.abs(known);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return known.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return size >= 999.5 ? Math.round(known).toLocaleString("en") : String(Number(known.toPrecision(3)));
}

/** A whole number, with thousands set apart. */
export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en");
}

export function plural(amount, one, many = `${one}s`) {
  return `${count(amount)} ${amount === 1 ? one : many}`;
}

/** A share of one, in per cent. */
export function percent(share) {
  const known = parse(share);
  return Number.isFinite(known) ? `${Number((100 * known).toPrecision(2))} %` : "–";
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (size >= 999.5 && place < units.length - 1) { size /= 1000; place += 1; }
  return `${Number(size.toPrecision(3))} ${units[place]}`;
}

export function moment(seconds) {
  return seconds ? new Date(1000 * seconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : null;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return null;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

/** Seconds since the start, as on an axis: 45 s, 12 min, 1.5 h. */
export function stretch(seconds) {
  const known = Math.max(0, seconds ?? 0);
  if (known < 60) return `${Number(known.toFixed(1))} s`;
  if (known < 3600) return `${Number((known / 60).toFixed(1))} min`;
  return known < 172800 ? `${Number((known / 3600).toFixed(1))} h` : `${Number((known / 86400).toFixed(1))} d`;
}

/** A sentence begins with a capital. */
export function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

const TONES = { running: "info", starting: "info", stopping: "warn", succeeded: "good", failed: "danger", halted: "danger", waiting: "warn" };

/** The class of a badge for a status. */
export function tone(status) {
  return TONES[status] ?? "idle";
}

/** Why a job is in the state it is in: "Waiting for 2 GPUs, 1 free" is complete, others begin with the state. */
export function state(job) {
  const reason = job.reason ?? "";
  if (!reason) return sentence(job.status);
  return reason.startsWith(job.status) ? sentence(reason) : `${sentence(job.status)}: ${reason}`;
}

/** "step 120 of 600", or nothing where there was none. */
export function steps(progress) {
  if (!progress) return "";
  const total = progress.total_steps ? ` of ${count(progress.total_steps)}` : "";
  return `step ${count(progress.step)}${total}`;
}

/** "step 120 of 600 · 4.8 steps a second · 100 s left"; without a rate the step alone. */
export function progress(found, rate) {
  const left = rate && found.total_steps ? duration((found.total_steps - found.step) / rate) : null;
  return [steps(found), rate && `${number(rate)} steps a second`, left && `${left} left`].filter(Boolean).join(" · ");
}
