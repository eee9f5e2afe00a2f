// The sign-in form: a token for this tab.

import { call, token } from "/page/api.js";
import { h } from "/page/dom.js";

export function showLogin(app, entered) {
  app.title("Sign in");
  const problem = h("p", { id: "login-problem", class: "problem", role: "alert" });
  const field = h("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "login-problem token-help",
  });

  async function enter(event) {
    event.preventDefault();
    const given = field.value.trim();
    const oneWord = /^[\x21-\x7e]+$/.test(given);
    problem.textContent = oneWord ? "" : "A token is one word, such as gg_1234abcd_…";
    if (!oneWord) return;
    token.set(given);
    try {
      entered(await call("GET", "/v1/me"));
    } catch (error) {
      token.clear();
      problem.textContent = error.message;
      field.select();
    }
  }

  app.main.append(
    h("h1", { tabindex: "-1" }, "Sign in"),
    h("form", { class: "panel narrow", onsubmit: enter },
      h("label", { for: "token" }, "Token"),
      field,
      h("p", { id: "token-help", class: "muted" }, "Created with ", h("code", null, "gradguard tokens create"), ". It is kept until this tab is closed."),
      problem,
      h("div", { class: "buttons" }, h("button", { class: "main" }, "Sign in"))));
}
