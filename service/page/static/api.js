// The HTTP API of the service: requests, and streams of server-sent events.

const KEY = "gradguard.token";
const LONGEST_PAUSE_MS = 10_000;

/** The token of this tab; forgotten with it. */
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

let refused = () => {};

/** Sets what happens where a token is missing, wrong or revoked. */
export function onRefused(handler) {
  refused = handler;
}

/** An error answer of the service. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  const mine = token.get();
  return mine ? { Authorization: `Bearer ${mine}`, ...more } : more;
}

async function failure(response) {
  const problem = await response.json().catch(() => ({})); // no document: a proxy answered
  const error = new ApiError(response.status, problem.detail ?? `the service answered ${response.status}`);
  if (response.status === 401) refused(error.message);
  return error;
}

async function request(method, path, options = {}) {
  const response = await fetch(path, { method, cache: "no-store", ...options }).catch((error) => {
    throw error.name === "AbortError" ? error : new ApiError(0, "the service does not answer");
  });
  if (!response.ok) throw await failure(response);
  return response;
}

/** A request with a JSON answer. */
export async function call(method, path, body, more = {}) {
  const { signal, ...extra } = more;
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  const kind = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await request(method, path, { headers: headers({ ...kind, ...extra }), signal, ...sent });
  return response.status === 204 ? null : response.json();
}

/** Sends a file; a JSON answer. */
export async function upload(path, content, type) {
  const response = await request("POST", path, { headers: headers({ "Content-Type": type }), body: content });
  return response.json();
}

/** Saves a file of a job. */
export async function download(path, name) {
  const response = await request("GET", path, { headers: headers() });
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** An id that no other request has. */
export function requestKey() {
  const random = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Follows a stream until the returned function is called, and reconnects when it breaks. A hidden page holds no
 * connection: a browser has only six for one service.
 *
 * handlers: a function for each kind of event. connected: called with "live", "lost" or "paused".
 */
export function follow(path, handlers, connected) {
  let stopped = false;
  let running = null;

  async function run(abort) {
    let pause = 500;
    while (!abort.signal.aborted) {
      try {
        await once(path, handlers, abort.signal, () => { pause = 500; connected("live"); });
      } catch (error) {
        if (abort.signal.aborted) return;
        if ([401, 403, 404, 422].includes(error.status)) return handlers.refused?.(error);
        connected("lost");
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }

  function begin() {
    if (running || stopped) return;
    running = new AbortController();
    run(running);
  }

  function end() {
    running?.abort();
    running = null;
  }

  function seen() {
    if (document.hidden) { end(); connected("paused"); } else begin();
  }

  document.addEventListener("visibilitychange", seen);
  if (!document.hidden) begin();
  return () => {
    stopped = true;
    end();
    document.removeEventListener("visibilitychange", seen);
  };
}

async function once(path, handlers, signal, opened) {
  const response = await request("GET", path, { headers: headers({ Accept: "text/event-stream" }), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  handlers.open?.();
  opened();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) dispatch(part, handlers);
  }
}

function dispatch(part, handlers) {
  const [, kind] = part.match(/^event: ([^\n]*)/m) ?? [];
  const [, data] = part.match(/^data: ([^\n]*)/m) ?? [];
  if (data) handlers[kind]?.(JSON.parse(data));
}
