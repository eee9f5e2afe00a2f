// The form to submit a job; its spec is checked while typing.

import { call, requestKey, upload } from "/page/api.js";
import { h, setText } from "/page/dom.js";
import { bytes, plural, sentence } from "/page/format.js";
import { pack } from "/page/zip.js";

const TYPING_MS = 300;

export function showSubmit(app) {
  app.title("Submit a job");
  if (!app.may("submit")) {
    app.main.append(h("h1", { tabindex: "-1" }, "Submit a job"), h("p", null, "This needs a token with the scope submit; yours can only read."));
    return undefined;
  }
  const form = new SubmitForm(app);
  app.main.append(h("h1", { tabindex: "-1" }, "Submit a job"), form.element);
  form.begin(new URLSearchParams(location.search).get("like"));
  return () => form.close();
}

class SubmitForm {
  constructor(app) {
    Object.assign(this, { app, key: requestKey(), workingDir: null, checked: null, asked: null, faulty: new Set() });
    this.text = h("textarea", { id: "spec", rows: "22", spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off", "aria-describedby": "verdict faults" });
    this.gutter = h("div", { class: "gutter", "aria-hidden": "true" });
    this.verdict = h("p", { id: "verdict", role: "status", class: "muted" }, "Write a spec, or start from an example.");
    this.faults = h("ul", { id: "faults", class: "faults", "aria-label": "Problems in the spec" });
    this.examples = h("select", { id: "example" }, h("option", { value: "" }, "–"));
    this.priority = h("input", { id: "priority", type: "number", min: "-1000", max: "1000", step: "1", value: "0", required: true });
    this.restarts = h("input", { id: "restarts", type: "number", min: "0", max: "100", step: "1", value: "3", required: true });
    this.env = h("textarea", { id: "env", rows: "3", spellcheck: "false", autocapitalize: "off", autocomplete: "off", "aria-describedby": "env-help" });
    this.folder = h("input", { id: "folder", type: "file", webkitdirectory: true, multiple: true, "aria-describedby": "folder-help" });
    this.archive = h("input", { id: "archive", type: "file", accept: ".zip,application/zip", "aria-describedby": "folder-help" });
    this.packed = h("p", { class: "muted", role: "status" });
    this.note = h("p", { class: "muted" });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.button = h("button", { class: "main" }, "Submit the job");
    this.element = this.#element();
    this.text.addEventListener("input", () => this.#typed());
    this.folder.addEventListener("change", () => this.#upload(this.folder, this.archive, () => pack(this.folder.files)));
    this.archive.addEventListener("change", () => this.#upload(this.archive, this.folder, async () => this.archive.files[0]));
    this.text.addEventListener("scroll", () => { this.gutter.scrollTop = this.text.scrollTop; });
  }

  #element() {
    const field = (label, input, help) => h("div", null, h("label", { for: input.id }, label), input, help);
    return h("form", { class: "submit", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.#submit(); } },
      h("div", { class: "panel" },
        field("Start from an example", this.examples),
        h("label", { for: "spec" }, "Spec, YAML"),
        h("div", { class: "editor" }, this.gutter, this.text),
        this.verdict, this.faults),
      h("div", { class: "panel fields" },
        field("Priority", this.priority), field("Maximum restarts", this.restarts),
        field("Working directory, a folder", this.folder), field("or a .zip file", this.archive),
        h("div", { class: "wide" }, h("p", { id: "folder-help", class: "muted" }, "For a workload of your own: the folder of its Python files."), this.packed),
        h("div", { class: "wide" }, h("label", { for: "env" }, "Environment, NAME=value on each line"), this.env,
          h("p", { id: "env-help", class: "muted" }, "Put secrets here: their values are never shown again."), this.note)),
      this.problem, h("div", { class: "buttons" }, this.button));
  }

  /** Fills the form, with the job to be cloned if there is one. */
  async begin(like) {
    try {
      const [known, draft] = await Promise.all([
        call("GET", "/v1/specs/examples"),
        like ? call("GET", `/v1/jobs/${encodeURIComponent(like)}/draft`) : null,
      ]);
      this.examples.addEventListener("change", () => {
        const found = known.find((one) => one.name === this.examples.value);
        if (found) this.#put(found.text);
      });
      this.examples.append(...known.map((one) => h("option", { value: one.name }, one.title)));
      if (draft) this.#fill(draft, like);
    } catch (error) {
      this.problem.textContent = sentence(error.message);
    }
    this.#number();
  }

  close() {
    clearTimeout(this.typing);
    this.asked?.abort();
  }

  #fill(draft, like) {
    this.priority.value = draft.priority;
    this.restarts.value = draft.max_restarts;
    this.env.value = Object.entries(draft.env).map(([name, value]) => `${name}=${value}`).join("\n");
    this.workingDir = draft.working_dir;
    const secrets = draft.secrets.length ? ` Enter these again, with their values: ${draft.secrets.join(", ")}.` : "";
    const folder = draft.working_dir ? " It uses the same working directory." : "";
    this.note.textContent = `Copy of ${like}.${folder}${secrets}`;
    this.#put(draft.text);
  }

  #put(text) {
    this.text.value = text;
    this.text.scrollTop = 0;
    this.#typed();
  }

  #typed() {
    this.key = requestKey();
    this.checked = null;
    this.#number();
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.#check(), TYPING_MS);
  }

  /** The service's check of the present text; null where the text has changed meanwhile. */
  async #check() {
    clearTimeout(this.typing);
    this.asked?.abort();
    const asked = (this.asked = new AbortController());
    const text = this.text.value;
    if (!text.trim()) {
      this.#show({ faults: [], empty: true });
      return null;
    }
    try {
      const found = await call("POST", "/v1/specs/check", { text }, { signal: asked.signal });
      if (asked.signal.aborted) return null;
      this.#show(found);
      return (this.checked = found);
    } catch (error) {
      if (!asked.signal.aborted) setText(this.verdict, sentence(error.message));
      return null;
    }
  }

  #show({ faults, wants, empty }) {
    this.faulty = new Set(faults.map((fault) => fault.line));
    this.text.setAttribute("aria-invalid", String(faults.length > 0));
    this.verdict.className = faults.length ? "problem" : "muted";
    const valid = empty ? "Write a spec, or start from an example." : `The spec is valid. It asks for ${wants}.`;
    setText(this.verdict, faults.length ? `The spec has ${plural(faults.length, "problem")}.` : valid);
    this.faults.replaceChildren(...faults.map((fault) => h("li", null, this.#fault(fault))));
    this.#number();
  }

  #fault({ path, line, message }) {
    const words = [h("code", null, path), path ? " " : "", message];
    if (line === null) return h("span", null, ...words);
    return h("button", { type: "button", class: "fault", onclick: () => this.#goTo(line) }, h("b", null, `Line ${line}`), " ", ...words);
  }

  /** Puts the cursor on a line. */
  #goTo(line) {
    const lines = this.text.value.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    this.text.focus();
    this.text.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  }

  #number() {
    const total = this.text.value.split("\n").length;
    this.gutter.replaceChildren(...Array.from({ length: total }, (_, i) => h("div", { class: this.faulty.has(i + 1) ? "bad" : null }, String(i + 1))));
    this.gutter.scrollTop = this.text.scrollTop;
  }

  /** Sends the working directory as soon as it is chosen; the other field is emptied. */
  async #upload(field, other, content) {
    this.key = requestKey();
    this.workingDir = null;
    this.problem.textContent = "";
    other.value = "";
    if (!field.files.length) return setText(this.packed, "");
    setText(this.packed, "Uploading");
    this.button.disabled = true;
    try {
      const sent = await upload("/v1/packages", await content(), "application/zip");
      this.workingDir = sent.id;
      setText(this.packed, `Uploaded ${plural(sent.files, "file")}, ${bytes(sent.size)}.`);
    } catch (error) {
      field.value = "";
      setText(this.packed, "");
      this.problem.textContent = `Working directory: ${error.message}`;
    } finally {
      this.button.disabled = false;
    }
    return undefined;
  }

  async #submit() {
    this.problem.textContent = "";
    const found = this.checked ?? (await this.#check());
    if (!found || found.faults.length) return (this.faults.querySelector("button") ?? this.text).focus();
    const odd = [this.priority, this.restarts].find((input) => !input.checkValidity());
    if (odd) {
      this.problem.textContent = `${odd.labels[0].textContent}: ${odd.validationMessage}`;
      return odd.focus();
    }
    this.button.disabled = true;
    try {
      const body = { spec: found.spec, priority: Number(this.priority.value), max_restarts: Number(this.restarts.value), env: this.#environment() };
      if (this.workingDir) body.working_dir = this.workingDir;
      const job = await call("POST", "/v1/jobs", body, { "Idempotency-Key": this.key });
      this.app.go(`/jobs/${encodeURIComponent(job.id)}`);
    } catch (error) {
      this.problem.textContent = sentence(error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  #environment() {
    const lines = this.env.value.split("\n").map((line) => line.trim()).filter(Boolean);
    return Object.fromEntries(lines.map((line) => {
      const place = line.indexOf("=");
      if (place < 1) throw new Error(`environment: write NAME=value, not ${line.slice(0, 40)}`);
      return [line.slice(0, place), line.slice(place + 1)];
    }));
  }
}
