// The page: which view is shown, and the signed-in caller.

import { call, onRefused, token } from "/page/api.js";
import { showCompare } from "/page/compare.js";
import { h, setText } from "/page/dom.js";
import { showJob } from "/page/job.js";
import { showList } from "/page/list.js";
import { showLogin } from "/page/login.js";
import { showReplay } from "/page/replay.js";
import { showSubmit } from "/page/submit.js";

const RANKS = ["read", "submit", "admin"];
const CONNECTIONS = { live: "Live", lost: "Connection lost: trying again", paused: "Paused", none: "" };
const main = document.getElementById("main");
const asksForTokens = document.querySelector("meta[name=gradguard-tokens]").content === "asked";
let me = null;
let leave = () => {};
let shownPath = null;

const app = {
  main,
  /** Whether the caller has at least this scope. */
  may: (scope) => me !== null && RANKS.indexOf(me.scope) >= RANKS.indexOf(scope),
  usesTokens: () => asksForTokens,
  go,
  title: (text) => { document.title = text ? `${text} – GradGuard` : "GradGuard"; },
  connected: (how) => {
    const place = document.getElementById("connection");
    place.className = `connection ${how}`;
    setText(place, CONNECTIONS[how]);
  },
};

function go(url) {
  history.pushState(null, "", url);
  show(true);
}

function place() {
  const path = location.pathname;
  const fixed = { "/submit": showSubmit, "/compare": showCompare, "/replay": showReplay }[path];
  return fixed ?? (path.startsWith("/jobs/") ? showJob : showList);
}

/** Shows the view of the address. After a click on a link the focus goes to its heading. */
function show(moved) {
  leave();
  leave = () => {};
  shownPath = location.pathname + location.search;
  app.connected("none");
  main.replaceChildren();
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.getAttribute("href") === location.pathname) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const id = () => decodeURIComponent(location.pathname.split("/")[2] ?? "");
  leave = (me === null ? showLogin(app, entered) : place()(app, id())) ?? leave;
  if (moved) {
    window.scrollTo(0, 0);
    main.querySelector("h1")?.focus({ preventScroll: true });
  }
}

/** The views that the scope of the token allows. */
function offer() {
  for (const name of ["nav-submit", "nav-replay"]) document.getElementById(name).hidden = !app.may("submit");
}

function entered(who, moved = true) {
  me = who;
  const box = document.getElementById("who");
  const out = h("button", { class: "plain small", onclick: forget }, "Sign out");
  box.replaceChildren(...(who.tokens ? [h("span", null, `${who.name} (${who.scope})`), out] : []));
  offer();
  show(moved);
}

function forget(reason) {
  token.clear();
  me = null;
  document.getElementById("who").replaceChildren();
  offer();
  show(true);
  if (typeof reason === "string") main.querySelector("#login-problem").textContent = reason;
}

onRefused((reason) => { if (me !== null) forget(reason); });

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || link.target || link.hasAttribute("download")) return;
  const href = link.getAttribute("href");
  if (typeof href !== "string" || !/^\/($|submit|compare|replay|jobs\/)/.test(href)) return;
  event.preventDefault();
  go(href);
});

window.addEventListener("popstate", () => {
  if (location.pathname + location.search !== shownPath) show(true); // otherwise a place within the page
});

async function begin() {
  if (asksForTokens && !token.get()) return show(false);
  try {
    entered(await call("GET", "/v1/me"), false);
  } catch (error) {
    if (error.status === 401) token.clear();
    show(false);
    main.querySelector("#login-problem").textContent = error.message;
  }
}

begin();
