// Elements made by code. Whatever a job wrote is shown as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; children are elements or text, nothing where null. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Sets the text of an element if it differs, so that a screen reader does not repeat it. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A list of names and values; those without a value are skipped. */
export function facts(entries, className = "facts") {
  const known = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: className }, known.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

/** A table that scrolls sideways where it is too wide, or wraps its cells. The first cell of a row is its header. */
export function table(caption, head, rows, { wraps = false } = {}) {
  const body = rows.map((row) =>
    h("tr", { class: row.class }, row.cells.map((cell, i) => (i ? h("td", null, cell) : h("th", { scope: "row" }, cell)))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: wraps ? "wraps" : null },
      h("caption", { class: "hidden" }, caption),
      h("thead", null, h("tr", null, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, body)));
}

/** Asks for confirmation; true if the answer is yes. */
export function confirmed(question, detail, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("form", { method: "dialog" },
        h("h2", { id: "question" }, question),
        h("p", null, detail),
        h("div", { class: "buttons" },
          h("button", { value: "no", class: "plain" }, "Cancel"),
          h("button", { value: "yes", class: "main" }, yes))));
    // The policy of the page forbids forms to be sent, and this one is none: it only closes.
    dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close(event.submitter?.value ?? "no");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
