/**
 * Talks to the gateway. A question goes in, its answer or a `Problem` comes out; `Watch` knows whether anyone is there.
 *
 * All addresses are relative to this file's own, so the page works below any path prefix.
 */

export const root = new URL("..", import.meta.url);

const KEY = "tresnet-api-key";
const BEAT_MS = 5000;
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 8000;
const PROBE_TIMEOUT_MS = 8000;
const LEAST_WAIT_MS = 20; // in the browser; less is not worth a word

/** Whatever kept a question from its answer. `status` 0: nobody answered at all. */
export class Problem extends Error {
  constructor(status, { code = "", detail = "", requestId = "", retryAfterS = null } = {}) {
    super(detail || `status ${status}`);
    Object.assign(this, { status, code, detail, requestId, retryAfterS });
    this.isOfFormerKey = false; // another key has been given since the question was sent
  }

  get isForKey() {
    return this.status === 401;
  }

  /** The service is there and has too much to do. */
  get isBusy() {
    return this.code === "queue_full" || this.code === "rate_limited";
  }

  /** What was asked is served no more: another version, or another model, may be. */
  get isOfModel() {
    return this.code === "unknown_model" || this.code === "unknown_version";
  }

  /** The service, or what it needs, is not there: 502 to 504 without a code of its own come from a proxy before it. */
  get isAway() {
    if (this.status === 0) return true;
    if (this.status === 503) return !this.isBusy;
    return (this.status === 502 || this.status === 504) && this.code === "";
  }
}

let key = "";
let keysGiven = 0;
let questions = 0;
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is forbidden here: the key lives as long as the page.
}

export function hasKey() {
  return key !== "";
}

export function setKey(value) {
  key = value;
  keysGiven += 1;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // As above.
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers["X-API-Key"] = key;
  const keysBefore = keysGiven;
  let response;
  try {
    response = await fetch(new URL(path, root), { cache: "no-store", ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0);
  }
  if (!response.ok) {
    const problem = await problemOf(response);
    problem.isOfFormerKey = keysGiven !== keysBefore;
    throw problem;
  }
  try {
    return { document: await response.json(), headers: response.headers };
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0); // it broke off
  }
}

function notUnderstood() {
  return new Problem(200, { code: "not_understood", detail: "what came is not an answer of this service" });
}

async function problemOf(response) {
  const given = { requestId: response.headers.get("X-Request-ID") ?? "" };
  const retryAfter = Number(response.headers.get("Retry-After"));
  if (retryAfter > 0) given.retryAfterS = retryAfter;
  try {
    const { code, detail, request_id: requestId } = await response.json();
    Object.assign(given, { code, detail }, requestId ? { requestId } : {});
  } catch {
    // Not ours: a proxy's page. The status has to do.
  }
  return new Problem(response.status, given);
}

export async function models() {
  const { document } = await request("models");
  const understood = Array.isArray(document?.models) && document.models.every((model) => model?.name && Array.isArray(model.labels));
  if (!understood) throw notUnderstood();
  return document.models;
}

/** The card of a model's version as Markdown, or null where it has none. */
export async function modelCard({ name, version }) {
  try {
    return (await request(`models/${encodeURIComponent(name)}?${new URLSearchParams({ version })}`)).document?.card ?? null;
  } catch (error) {
    if (error instanceof Problem) return null;
    throw error;
  }
}

export function questionUrl(task, parameters) {
  const url = new URL(task, root);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  return url;
}

/** Ask about one picture. Gives its result, the milliseconds of each stage, and which model answered. */
export async function ask(task, parameters, body, signal) {
  const url = questionUrl(task, parameters);
  url.hash = `question-${++questions}`; // stays in the browser, which keeps its own times under the whole address
  const asked = performance.now();
  const { document, headers } = await request(url, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" }, // the bytes decide, not the file's name
    body,
    signal,
  });
  const tookMs = performance.now() - asked;
  const [sent] = performance.getEntriesByName(url.href);
  performance.clearResourceTimings(); // the browser keeps but so many
  const awayMs = sent?.requestStart ? sent.responseEnd - sent.requestStart : tookMs;
  const result = document?.results?.[0];
  const found = result?.predictions ?? result?.tags;
  const understood = document?.model && Array.isArray(found) && found.every((entry) => typeof entry?.label === "string" && Number.isFinite(entry.score));
  if (!understood) throw notUnderstood();
  return { model: document.model, result, times: stages(headers.get("Server-Timing"), tookMs, awayMs) };
}

/** `awayMs` of `tookMs`: from the request's first byte to the answer's last, without what waited in this browser. */
function stages(header, tookMs, awayMs) {
  const times = new Map();
  if (tookMs - awayMs >= LEAST_WAIT_MS) times.set("browser", tookMs - awayMs);
  for (const [, name, duration] of (header ?? "").matchAll(/([a-z]+);dur=([0-9.]+)/g)) times.set(name, Number(duration));
  const total = times.get("total") ?? 0;
  times.delete("total");
  const known = [...times].reduce((sum, [name, value]) => sum + (name === "browser" ? 0 : value), 0);
  if (total > known) times.set("other", total - known);
  if (awayMs > total) times.set("network", awayMs - total);
  return { stages: [...times], totalMs: tookMs };
}

/** Looks whether the service is ready: seldom while it is, with growing pauses while it is not. */
export class Watch {
  constructor(onChange) {
    this.onChange = onChange;
    this.state = "unknown";
    this.problem = null;
    this.waitMs = FIRST_WAIT_MS;
    this.models = "";
    this.hasNews = false; // other models are ready than at the look before
  }

  start() {
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    window.addEventListener("online", () => this.look());
    return this.look();
  }

  /** A question met nobody: do not wait for the next beat. */
  lost(problem) {
    if (this.state !== "away") this.#away(problem);
  }

  async look() {
    clearTimeout(this.timer);
    this.lookNumber = (this.lookNumber ?? 0) + 1;
    const number = this.lookNumber;
    let problem = null;
    let models = "";
    try {
      const { document } = await request("readyz", { signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) });
      models = String(document?.models);
    } catch (error) {
      problem = error instanceof Problem ? error : new Problem(0);
    }
    if (number !== this.lookNumber) return; // a later look is on its way
    if (problem) this.#away(problem);
    else this.#ready(models);
  }

  #ready(models) {
    this.hasNews = models !== this.models;
    this.models = models;
    this.waitMs = FIRST_WAIT_MS;
    this.problem = null;
    this.#change("ready");
    this.#plan(BEAT_MS, () => !document.hidden);
  }

  #away(problem) {
    this.problem = problem;
    this.#plan(this.waitMs, () => true);
    this.waitMs = Math.min(this.waitMs * 2, LONGEST_WAIT_MS);
    this.#change("away");
  }

  #plan(ms, wanted) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (wanted() ? this.look() : this.#plan(ms, wanted)), ms);
  }

  #change(state) {
    const before = this.state;
    this.state = state;
    this.onChange(state, before);
  }
}
