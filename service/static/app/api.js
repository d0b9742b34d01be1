// Calls of the API, and what all pages know. Invariant: nothing from the service is read as HTML, and the key
// goes to this service alone.
import { computed, signal } from "../vendor/preact.js";

// It stays in this tab: sessionStorage ends with it.
export const key = signal(sessionStorage.getItem("key"));
export const setKey = (value) => {
  // Anything else than these could not be sent in a header.
  const clean = (value ?? "").replace(/[^\x21-\x7e]/g, "");
  if (clean) sessionStorage.setItem("key", clean);
  else sessionStorage.removeItem("key");
  key.value = clean || null;
};

/** What the API answered in place of a result: `code` is stable, `field` and `row` say where the input is wrong. */
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super([body.title, body.detail].filter(Boolean).join(": ") || `status ${status}`);
    Object.assign(this, { status, code: body.code, title: body.title, field: body.field, row: body.row, retryAfter });
  }
}

/** No answer came: whether the call was done is not known. */
export class NoAnswer extends Error {}
const ORIGIN = location.origin;
const unanswered = (error, timeout_s) => {
  if (error.name === "TimeoutError") return new NoAnswer(`No answer from ${ORIGIN} within ${timeout_s} s. It may be busy: try again, and look at its log if that goes on.`);
  // The browser says no more of a connection than that it failed.
  if (error instanceof TypeError) return new NoAnswer(`No connection to ${ORIGIN}. Check that the service runs there (\`foldin up\` starts one) and that this device reaches it, then try again.`);
  return error;
};
/** Whether the same call may succeed later. A proxy answers 502 and 504 while a service behind it starts. */
export const passes = (error) => error instanceof NoAnswer || [408, 429, 502, 503, 504, 507].includes(error.status);

const read = async (answer) => {
  const text = await answer.text();
  if (!(answer.headers.get("Content-Type") || "").includes("json")) return text;
  return text ? JSON.parse(text) : null;
};

// A browser takes both for folders, and leaves them out of an address, however they are encoded.
const FOLDERS = [".", ".."];
/** Why a browser cannot send a call whose path has these parts; null where it can. */
export const noAddress = (parts) => {
  const part = parts.find((each) => FOLDERS.includes(each));
  return part === undefined ? null : `A browser cannot ask for the id "${part}"; the client for Python can.`;
};

const TIMEOUT_S = 30;
/** Call the API. `body`: an object is sent as JSON, a text as NDJSON. Throws `Problem`, or `NoAnswer`. */
export async function ask(method, path, body, { signal: abort, timeout_s = TIMEOUT_S } = {}) {
  const why = noAddress(path.split("?")[0].split("/"));
  if (why) throw new Error(why);
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  const sent = body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body);
  if (sent !== undefined) headers["Content-Type"] = typeof body === "string" ? "application/x-ndjson" : "application/json";
  const limit = AbortSignal.timeout(timeout_s * 1000);
  try {
    const answer = await fetch(path, { method, headers, body: sent, signal: abort ? AbortSignal.any([abort, limit]) : limit });
    if (answer.ok) return answer;
    const got = await read(answer);
    throw new Problem(answer.status, got && typeof got === "object" ? got : {}, Number(answer.headers.get("Retry-After")) || null);
  } catch (error) {
    throw unanswered(error, timeout_s);
  }
}
/** What it answers, read whole. */
export const call = async (...asked) => {
  const answer = await ask(...asked);
  return read(answer).catch((error) => {
    throw unanswered(error, asked[3]?.timeout_s ?? TIMEOUT_S);
  });
};
export const get = (path, options) => call("GET", path, undefined, options);
export const id = encodeURIComponent;
// Longer than that a reader would rather be told.
const MOST_WAIT_S = 30;
/** What `make` gives, which is called again, twice at most, where it may succeed in a moment. */
export async function retrying(make, { signal: abort, times = 2 } = {}) {
  for (let n = 0; ; n++) {
    try {
      return await make();
    } catch (error) {
      const wait_s = error.retryAfter || 1;
      if (abort?.aborted || n >= times || !passes(error) || wait_s > MOST_WAIT_S) throw error;
      await new Promise((go) => setTimeout(go, wait_s * 1000));
    }
  }
}

// What /status said last and when (seconds since 1970), why it did not since, and what the key may do.
export const status = signal(null);
export const answeredAt = signal(null);
export const trouble = signal(null);
export const may = signal({ role: "operate", keys: false });
const LEVELS = ["none", "metrics", "read", "rate", "operate"];
export const allowed = (role) => LEVELS.indexOf(may.value.role) >= LEVELS.indexOf(role);
export const locked = computed(() => trouble.value instanceof Problem && trouble.value.status === 401);
/** Whether the key is one of what scrapes, for which no page has anything. */
export const scraping = computed(() => may.value.role === "metrics");

let timer;
/** Look at /status now, and every two seconds from now on while the page is seen. */
export async function look() {
  clearTimeout(timer);
  if (!document.hidden) {
    const sent = key.value;
    try {
      status.value = await get("/status", { timeout_s: 5 });
      answeredAt.value = Date.now() / 1000;
      trouble.value = null;
    } catch (error) {
      // What was asked with another key says nothing of this one.
      if (key.value !== sent) return look();
      if (error.status === 401 && key.value !== null) {
        setKey(null);
        error.refused = true;
      }
      trouble.value = error;
      // Until there is a key, asking again would only be refused again.
      if (error.status === 401) return;
    }
  }
  timer = setTimeout(look, 2000);
}
/** Learn what the key may do, then look. */
export async function enter() {
  try {
    may.value = await get("/access");
  } catch {
    // What `look` finds says why.
  }
  await look();
}
document.addEventListener("visibilitychange", () => document.hidden || locked.value || look());
