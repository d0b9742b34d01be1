// A client of the Foldin API for browsers and Node, without dependencies. `operations.js` has what each call is made of.

import { OPERATIONS } from "./operations.js";

// What the service takes in one call; of its 10 MB a proxy may count less.
const MAX_ROWS = 10_000;
const MAX_BYTES = 8_000_000;
// A pause doubles with each attempt; as much as the first is added by chance.
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
// Their pauses take longer than the minute for which a call is sent again, which is what bounds them.
const MOST_ATTEMPTS = 100;
// A timer of more runs out at once.
const MOST_MS = 2 ** 31 - 1;
// As long as the service waits for a training unasked.
const TRAINING_MS = 60_000;
const BUSY = new Set([408, 429, 502, 503, 504, 507]);
// Refusals that say that nothing was done, so that any call may be sent again.
const NOTHING_DONE = new Set(["quota_exceeded", "stream_full", "overloaded"]);
// What does not change within the seconds for which a call waits.
const LASTING = new Set(["no_generation", "training_failed", "training_timeout", "data_damaged"]);

export class FoldinError extends Error {
  constructor(message, told = {}) {
    super(message, { cause: told.cause });
    this.name = "FoldinError";
    this.status = told.status ?? 0;
    this.code = told.code ?? "";
    this.detail = told.detail ?? "";
    this.requestId = told.requestId ?? "";
    this.field = told.field ?? null;
    this.row = told.row ?? null;
    this.retryAfterMs = told.retryAfterMs ?? null;
    this.attempts = 1;
    this.accepted = 0;
    this.more = told.more ?? {};
    this.isLost = told.isLost === true;
  }
}

export class Foldin {
  #headers;
  #options;

  constructor(url, { key, timeoutMs = 30_000, retryMs = 60_000, attempts = MOST_ATTEMPTS, fetch: ask } = {}) {
    if (!/^https?:\/\/[^/]/.test(url) || parsed(url) === null) {
      throw new TypeError(`${withoutUser(url)} is no address such as http://127.0.0.1:8080`);
    }
    if (timeoutMs !== Infinity && !(timeoutMs > 0 && timeoutMs <= MOST_MS)) {
      throw new RangeError(`timeoutMs is more than 0 and at most ${MOST_MS}, or Infinity`);
    }
    // A line break would begin another header.
    if (key !== undefined && !/^[!-~]+$/.test(key)) throw new TypeError("a key is printable ASCII");
    this.url = withoutUser(url).replace(/\/+$/, "");
    const { username, password } = parsed(url);
    this.#headers = key === undefined ? {} : { Authorization: `Bearer ${key}` };
    // `fetch` takes no address that names a user.
    if (username || password) this.#headers.Authorization = basic(username, password);
    // Called without this object, as browsers want it.
    this.#options = { timeoutMs, retryMs, attempts, ask: ask ?? ((...request) => fetch(...request)) };
  }

  async _json(operation, sent) {
    const { response, whole } = await this._send(operation, sent);
    return this._parsed(operation, response, whole);
  }

  async _text(operation, sent) {
    return (await this._send(operation, sent)).whole;
  }

  // Yields one object after the other; where the answer breaks off, what came is a part, and it throws.
  async *_lines(operation, sent) {
    const { response, state } = await this._send(operation, sent);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    try {
      for (;;) {
        const { done, value } = await this._within(state, () => reader.read());
        rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
        const lines = rest.split("\n");
        rest = done ? "" : lines.pop();
        for (const line of lines) if (line.trim()) yield this._parsed(operation, response, line);
        if (done) return;
      }
    } finally {
      // Of an answer that was not read to its end no more comes.
      state.stop();
    }
  }

  async _rows(operation, rows) {
    let accepted = 0;
    let stillDeleted = 0;
    let answer = { accepted: 0, generation: null };
    let lines = [];
    let bytes = 0;
    const encoder = new TextEncoder();
    const send = async () => {
      const body = `${lines.join("\n")}\n`;
      [lines, bytes] = [[], 0];
      try {
        answer = await this._json(operation, { path: operation.path, query: {}, body, lines: true });
      } catch (error) {
        if (error instanceof FoldinError && error.row !== null) error.row += accepted;
        throw error;
      }
      accepted += answer.accepted;
      stillDeleted += answer.still_deleted ?? 0;
    };
    let given = 0;
    try {
      for await (const row of severalOf(rows)) {
        const line = JSON.stringify(row);
        if (line === undefined) throw new TypeError(`row ${given} is no object but ${typeof row}`);
        given += 1;
        const size = encoder.encode(line).length + 1;
        if (lines.length === MAX_ROWS || (lines.length > 0 && bytes + size > MAX_BYTES)) await send();
        lines.push(line);
        bytes += size;
      }
      if (lines.length > 0) await send();
    } catch (error) {
      // Also one of the caller's rows: how far they came is nowhere else. One that is frozen stays as it is.
      if (Object(error) === error) Reflect.set(error, "accepted", accepted);
      throw error;
    }
    return { ...answer, accepted, ...(stillDeleted > 0 && { still_deleted: stillDeleted }) };
  }

  // Sends a call, again where that helps and does no harm.
  async _send(operation, sent) {
    const deadline = performance.now() + this.#options.retryMs;
    // What a list has shown would be counted twice.
    const again = operation.again === true && sent.shows !== true;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this._sendOnce(operation, sent);
      } catch (error) {
        if (!(error instanceof FoldinError)) throw error;
        error.attempts = attempt;
        const pause = attempt < this.#options.attempts ? pauseBefore(error, attempt, again) : null;
        if (pause === null || performance.now() + pause > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }

  async _sendOnce(operation, sent) {
    const query = new URLSearchParams(sent.query).toString();
    const headers = { ...this.#headers };
    if (sent.body !== undefined) headers["Content-Type"] = sent.lines ? "application/x-ndjson" : "application/json";
    const stopping = new AbortController();
    const longerMs = operation.waits ? Number(sent.query.wait ?? TRAINING_MS / 1000) * 1000 : 0;
    const state = { stop: () => stopping.abort(), operation, timeoutMs: this.#options.timeoutMs + longerMs };
    const response = await this._within(state, () =>
      this.#options.ask(this.url + sent.path + (query && `?${query}`), {
        method: operation.method,
        headers,
        body: sent.body,
        signal: stopping.signal,
        // A POST would become a GET, and the key go to another server.
        redirect: "manual",
      }),
    );
    const answer = { response, state };
    if (response.ok && operation.answer === "lines") return answer;
    const whole = await this._within(state, () => response.text());
    if (!response.ok) throw problem(operation, response, whole);
    return { ...answer, whole };
  }

  // Waits for a step of an answer; gives it up after the time of a call.
  async _within(state, step) {
    const timer = state.timeoutMs === Infinity ? undefined : setTimeout(state.stop, Math.min(state.timeoutMs, MOST_MS));
    try {
      return await step();
    } catch (cause) {
      const { method, path } = state.operation;
      // An address in it has users and items behind its `?`.
      const why = String(cause?.cause?.message ?? cause?.message ?? cause).replace(/\?\S*/g, "");
      throw new FoldinError(`${method} ${this.url}${path}: no whole answer (${why})`, { cause, isLost: true });
    } finally {
      clearTimeout(timer);
    }
  }

  _parsed(operation, response, text) {
    try {
      return JSON.parse(text);
    } catch (cause) {
      const message = `${operation.method} ${operation.path}: what answers is no Foldin: ${text.slice(0, 200)}`;
      throw new FoldinError(message, { status: response.status, cause });
    }
  }
}

for (const [name, operation] of Object.entries(OPERATIONS)) {
  Foldin.prototype[name] = function call(...given) {
    if (operation.rows) return this._rows(operation, given[0]);
    const sent = requestOf(operation, given);
    return operation.answer === "lines" ? this._lines(operation, sent) : this[`_${operation.answer}`](operation, sent);
  };
}

function requestOf(operation, given) {
  const named = { ...(operation.body ? given[operation.positional.length + 1] : given[operation.positional.length]) };
  const query = {};
  let { path } = operation;
  operation.positional.forEach((name, place) => {
    if (given[place] === undefined || given[place] === null) throw new TypeError(`${name} is missing`);
    if (path.includes(`{${name}}`)) path = path.replace(`{${name}}`, () => part(given[place]));
    else query[name] = text(given[place]);
  });
  const shows = named.impressions === true;
  for (const name of operation.query ?? []) {
    if (named[name] !== undefined && named[name] !== null) query[name] = text(named[name]);
    delete named[name];
  }
  let body;
  if (operation.body) body = JSON.stringify(given[operation.positional.length]);
  else if (operation.fields || (operation.fields === false && Object.keys(named).length > 0)) {
    body = JSON.stringify(named);
  }
  return { path, query, body, shows };
}

// All that is shown of an address goes through here. Of a text that is none, what is behind its last `@` is left.
function withoutUser(url) {
  const text = String(url);
  return parsed(text) ? text.replace(/\/\/[^/?#]*@/, "//") : text.split("@").at(-1);
}

function parsed(url) {
  try {
    return new URL(url);
  } catch {
    return null;
  }
}

function basic(username, password) {
  const bytes = new TextEncoder().encode(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

// Whatever is in it stays in one part of the path.
function part(value) {
  const whole = String(value);
  // Addresses of the web know no other way to say these two, be they percent-encoded.
  if (whole === "." || whole === "..") throw new TypeError(`${whole} cannot be a part of an address`);
  return encodeURIComponent(whole);
}

function text(value) {
  // A list stands in a query with commas between.
  if (Array.isArray(value)) return value.map(text).join(",");
  return typeof value === "string" ? value : JSON.stringify(value);
}

function severalOf(rows) {
  if (typeof rows === "string") throw new TypeError("rows are objects");
  return rows[Symbol.iterator] || rows[Symbol.asyncIterator] ? rows : [rows];
}

function problem(operation, response, whole) {
  let told = {};
  try {
    told = JSON.parse(whole) ?? {};
  } catch {
    // The page of a proxy.
  }
  const { code = "", detail = "", request_id: requestId = "", field, row, type, title, status, ...more } = told;
  const shown = detail || whole.slice(0, 200) || response.headers.get("location") || "";
  const message = `${operation.method} ${operation.path}: ${response.status} ${code}: ${shown}`;
  const retryAfterMs = retryAfter(response.headers.get("retry-after"));
  return new FoldinError(message, { status: response.status, code, detail, requestId, field, row, retryAfterMs, more });
}

function retryAfter(value) {
  if (!value) return null;
  const seconds = Number(value);
  const ms = Number.isNaN(seconds) ? Date.parse(value) - Date.now() : seconds * 1000;
  return Number.isFinite(ms) ? Math.max(ms, 0) : null;
}

// How long to wait before a call is sent again, null where it is not.
function pauseBefore(error, attempt, again) {
  if (LASTING.has(error.code)) return null;
  const passes = error.isLost || BUSY.has(error.status);
  if (!NOTHING_DONE.has(error.code) && !(again && passes)) return null;
  if (error.retryAfterMs !== null) return error.retryAfterMs * (1 + Math.random() / 4);
  return Math.min(FIRST_PAUSE_MS * 2 ** (attempt - 1), LONGEST_PAUSE_MS) + Math.random() * FIRST_PAUSE_MS;
}
