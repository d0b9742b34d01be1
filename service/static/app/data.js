// Ratings in and out: a file of the reader is shown, checked as a whole, and only then sent.
import { html, signal, useState } from "../vendor/preact.js";
import { ask, call, look, passes, retrying, status } from "./api.js";
import { Catalogue, catalogueOf, plain } from "./catalogue.js";
import { rows } from "./csv.js";
import { ago, number, plural } from "./format.js";
import { Action, Commands, Failure, Field, Table } from "./parts.js";

const ROLES = ["user", "item", "rating", "timestamp"];
// Names that files use, without case, spaces and punctuation.
const NAMES = {
  user: ["user", "userid", "u", "uid", "reviewer", "reviewerid", "customer", "customerid"], item: ["item", "itemid", "i", "iid", "movie", "movieid", "product", "productid", "sku", "asin", "animeid", "bookid", "isbn"],
  rating: ["rating", "score", "stars", "overall", "value", "r", "ratingvalue", "bookrating"], timestamp: ["timestamp", "time", "date", "when", "t", "createdat", "ratedat", "unixreviewtime"],
};
const BATCH = 5000;
const SHOWN_BAD = 20;

/** What the columns are taken for: by their names, the others by their places. `first`: the first rows of a file. Names
 *  stand in a row without a number or a date, above one that has some. */
export function mapping(first) {
  const [head, ...below] = first;
  const figure = (cell) => NUMBER.test(cell.trim()) || ISO.test(cell.trim());
  const named = Object.fromEntries(ROLES.map((role) => [role, head.findIndex((name) => NAMES[role].includes(plain(name.trim())))]));
  const all = named.user >= 0 && named.item >= 0 && named.rating >= 0;
  const has_head = all || (!head.some(figure) && below.some((cells) => cells.some(figure)));
  if (!has_head) return { has_head, columns: { user: 0, item: 1, rating: 2, timestamp: head.length > 3 ? 3 : -1 } };
  const free = head.map((_, place) => place).filter((place) => !Object.values(named).includes(place));
  const taken = (role) => (named[role] >= 0 ? named[role] : (free.shift() ?? 0));
  return { has_head, columns: { user: taken("user"), item: taken("item"), rating: taken("rating"), timestamp: named.timestamp } };
}

// As `foldin import` has both: what else a browser takes for a date, it takes as it pleases, and in its own zone.
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const ISO = /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d+)?)?)(?:Z|([+-]\d\d)(?::?(\d\d))?)?)?$/i;
// Of the API.
const [MOST_ID_BYTES, MOST_TIME_S] = [256, 1e15];
const numeric = (text) => (NUMBER.test(text) ? Number(text) : NaN);

/** The name of a column that is read and of another one: which of them has the values is not known, as `foldin import` has it. */
const twice = (head, { has_head, columns }) => {
  const names = has_head ? head.map((name) => name.trim()) : [];
  return Object.values(columns).map((place) => names[place]).find((name) => name && names.indexOf(name) !== names.lastIndexOf(name));
};

/** Seconds since 1970 of a date in ISO 8601, in UTC where it names no zone; NaN of anything else. */
function dated(text) {
  const [, day, time = "00:00", hours, minutes = "00"] = ISO.exec(text) ?? [];
  // The 31st of February would be in March.
  if (!day || new Date(`${day}T00:00Z`).toJSON()?.slice(0, 10) !== day) return NaN;
  return Date.parse(`${day}T${time}${hours ? `${hours}:${minutes}` : "Z"}`) / 1000;
}

/** Seconds since 1970 of a number of seconds or milliseconds, or of a date. Throws where it is neither. */
function moment(text) {
  if (text === "") return undefined;
  const value = numeric(text);
  const seconds = Number.isNaN(value) ? dated(text) : Math.abs(value) > 1e11 ? value / 1000 : value;
  if (!(Math.abs(seconds) <= MOST_TIME_S)) throw new Error(`the time ${JSON.stringify(text.slice(0, 40))} is neither a number of seconds nor a date such as 2024-01-31`);
  return seconds;
}

/** One row as the API takes it. Throws what is wrong with it. */
export function event(cells, columns) {
  const at = (role) => (columns[role] < 0 ? "" : (cells[columns[role]] ?? "").trim());
  for (const role of ["user", "item", "rating"]) if (at(role) === "") throw new Error(`no ${role}`);
  for (const role of ["user", "item"]) if (new TextEncoder().encode(at(role)).length > MOST_ID_BYTES) throw new Error(`the ${role} ${JSON.stringify(at(role).slice(0, 40))} … is longer than ${MOST_ID_BYTES} bytes`);
  const rating = numeric(at("rating"));
  if (!Number.isFinite(rating)) throw new Error(`the rating ${JSON.stringify(at("rating").slice(0, 40))} is no number`);
  const timestamp = moment(at("timestamp"));
  return { user_id: at("user"), item_id: at("item"), rating, ...(timestamp === undefined ? {} : { timestamp }) };
}

/** The events of a file, each as `[line, event]`, bad rows told to `bad`; `read` is told how much of the file is read. */
async function* events(file, { has_head, columns }, bad, read = () => {}) {
  let head = has_head;
  let seen = 0;
  for await (const piece of rows(file)) {
    const found = [];
    for (const { line, cells } of head ? piece.slice(1) : piece) {
      try {
        found.push([line, event(cells, columns)]);
      } catch (error) {
        bad(line, error.message);
      }
    }
    head = head && !piece.length;
    seen = Math.min(file.size, seen + (1 << 20));
    read(seen / (file.size || 1));
    yield found;
  }
}

/** The scale for these ratings: that of stars or half stars where they lie on it, though perhaps none at its ends; else
 *  their own ends, and the widest step of 1/2, 1/4, 1/10 that they keep. Whole ones a fit finds by itself. */
export function scaleOf({ low, high, values }) {
  const on = (start, step) => values.size <= 1000 && [...values].every((value) => Math.abs((value - start) / step - Math.round((value - start) / step)) < 1e-6);
  if (low >= 1 && high <= 5 && on(1, 1)) return { low: 1, high: 5, step: null };
  if (low >= 0.5 && high <= 5 && on(0.5, 0.5)) return { low: 0.5, high: 5, step: values.size > 2 ? 0.5 : null };
  if (low === high) return { low, high: low + 1, step: null };
  const step = [1, 0.5, 0.25, 0.1].find((each) => on(low, each)) ?? null;
  return { low, high, step: step === 1 || values.size <= 2 ? null : step };
}
const asText = ({ low, high, step }) => `${low}:${high}${step ? `:${step}` : ""}`;

/** Read the whole file, and say what is in it. */
async function check(file, map, read) {
  const seen = { ratings: 0, users: new Set(), items: new Set(), low: Infinity, high: -Infinity, values: new Set(), bad: [], n_bad: 0 };
  const bad = (line, why) => {
    seen.n_bad += 1;
    if (seen.bad.length < SHOWN_BAD) seen.bad.push([number(line), why]);
  };
  for await (const found of events(file, map, bad, read)) {
    for (const [, { user_id, item_id, rating }] of found) {
      seen.ratings += 1;
      seen.users.add(user_id);
      seen.items.add(item_id);
      seen.low = Math.min(seen.low, rating);
      seen.high = Math.max(seen.high, rating);
      if (seen.values.size <= 1000) seen.values.add(rating);
    }
  }
  return { ...seen, scale: seen.ratings ? scaleOf(seen) : null };
}

// What is loaded now, or was last, wherever its reader looks meanwhile: `{file, sent, total, busy, stop, error}`.
const loading = signal(null);
const tellLoad = (more) => (loading.value = { ...loading.value, ...more });
window.addEventListener("beforeunload", (event_) => loading.value?.busy && event_.preventDefault());
/** Send one batch; a store that is busy or full for a moment is waited for, and so is a connection that was lost. */
async function send(batch) {
  const body = batch.map(([, each]) => JSON.stringify(each)).join("\n");
  for (let tries = 0; ; tries++) {
    try {
      return await call("POST", "/ratings", body, { timeout_s: 120 });
    } catch (error) {
      // Sending a call again is harmless: of a pair the last rating counts.
      if (loading.value.stop || tries >= 60 || !passes(error)) throw Number.isInteger(error.row) ? new Error(`Line ${number(batch[error.row][0])} of the file: ${error.message}`) : error;
      await new Promise((go) => setTimeout(go, 1000 * (error.retryAfter ?? 1)));
    }
  }
}

/** Send the ratings of a file that was checked; what comes of it is in `loading`. */
async function load(file, map, total) {
  loading.value = { file: file.name, sent: 0, total, busy: true, stop: false, error: null };
  let batch = [];
  const flush = async () => {
    await send(batch);
    tellLoad({ sent: loading.value.sent + batch.length });
    batch = [];
  };
  try {
    for await (const some of events(file, map, () => {})) {
      for (const each of some) {
        if (loading.value.stop) return;
        if (batch.push(each) === BATCH) await flush();
      }
    }
    if (batch.length) await flush();
  } catch (error) {
    tellLoad({ error });
  } finally {
    tellLoad({ busy: false });
  }
}

const Loading = () => {
  const { file, sent, total, busy, stop, error } = loading.value;
  return html`<p><span id="sent" role="status">${number(sent)} of ${number(total)} are stored.</span> <span class="soft">${file}${stop ? ", stopped" : ""}</span></p>
    ${busy && html`<p><progress max=${total} value=${sent} aria-label="progress of the load"></progress> <button type="button" disabled=${stop} onClick=${() => tellLoad({ stop: true })}>Stop</button></p>`}
    <${Failure} error=${error} />`;
};

const fits = (found, [low, high]) => found.low >= low && found.high <= high && low < high;

/** What the scale of a store that has none will be: that of the file, or what the reader makes of it. */
const Scale = ({ scale, set }) => html`<p>This store has no scale yet. It gets this one, for good:</p>
  <div class="search">${["low", "high", "step"].map((name) => html`<${Field} label=${name === "step" ? "step, if all ratings keep one" : `${name} end`}>
    <input type="number" step="any" id=${`scale-${name}`} value=${scale[name] ?? ""} onInput=${(event_) => set({ ...scale, [name]: event_.target.value === "" ? null : Number(event_.target.value) })} /><//>`)}</div>`;

const Import = () => {
  const [file, take] = useState(null);
  const [head, setHead] = useState([]);
  const [map, setMap] = useState(null);
  const [checked, setChecked] = useState(null);
  const [scale, setScale] = useState(null);
  const [progress, tell] = useState(null);
  const [error, fail] = useState(null);
  const [catalogue, setCatalogue] = useState(null);
  // What was found in another file, or by other columns, says nothing of these.
  const found = checked?.file === file && checked.map === map ? checked.seen : null;

  const choose = async (event_) => {
    const [chosen] = event_.target.files;
    [take, fail, tell].forEach((set) => set(null));
    if (!loading.value?.busy) loading.value = null;
    if (!chosen) return;
    try {
      const { value } = await rows(chosen, 1 << 16).next();
      if (!value?.length) throw new Error("the file has no rows");
      take(chosen);
      const first = value.slice(0, 4).map(({ cells }) => cells);
      setHead(first);
      const taken = mapping(first);
      setMap(taken);
      const named = first[0].map((name) => plain(name.trim()));
      const rates = ["user", "rating"].some((role) => named.some((name) => NAMES[role].includes(name)));
      setCatalogue(rates ? null : catalogueOf(first[0]));
    } catch (error_) {
      fail(error_ instanceof TypeError ? new Error("the file is not text in UTF-8; `foldin import` reads Parquet and gzip, too") : error_);
    }
  };
  // Else a browser says nothing where the same file is chosen, of which lines were mended meanwhile.
  const chooseAgain = (event_) => (event_.target.value = "");
  const dryRun = async () => {
    [setChecked, fail].forEach((set) => set(null));
    try {
      const seen = await check(file, map, tell);
      setScale(seen.scale);
      setChecked({ file, map, seen });
    } catch (error_) {
      fail(error_);
    }
    tell(null);
  };
  const begin = async () => {
    // Another reader, or a rating, may have been first: then it says which scale that is.
    if (open) await call("PUT", "/scale", scale).finally(look);
    await load(file, map, found.ratings);
  };
  const width = Math.max(...head.map((each) => each.length), 0);
  const names = Array.from({ length: width }, (_, n) => (map?.has_head ? head[0][n] : `column ${n + 1}`));
  const repeated = map && twice(head[0], map);
  const open = !status.value.scale_decided;
  const ready = found && found.ratings > 0 && fits(found, open ? [scale.low, scale.high] : status.value.scale);
  return html`<h2 id="import">Load a file</h2>
    <p>Ratings or a catalogue, as CSV or another text of columns: MovieLens, RecBole, your own. Nothing is sent before you have seen what it was taken for.</p>
    <p><input type="file" id="file" aria-label="a file of ratings" accept=".csv,.tsv,.txt,.dat,.data,.inter,text/*" onClick=${chooseAgain} onChange=${choose} /></p>
    <${Failure} error=${error} />
    ${file && catalogue && html`<p>This looks like a catalogue: items and what is known of them. <button type="button" class="quiet" onClick=${() => setCatalogue(null)}>It has ratings</button></p>
      <${Table} label="the first rows" columns=${head[0]} rows=${head.slice(1, 4)} /><${Catalogue} file=${file} head=${head[0]} columns=${catalogue} key=${file} />`}
    ${file && map && !catalogue && html`
      <${Table} label="the first rows" columns=${names} rows=${(map.has_head ? head.slice(1) : head).slice(0, 3)} />
      <div class="search">${ROLES.map((role) => html`<${Field} label=${role}><select id=${`column-${role}`} value=${String(map.columns[role])} onChange=${(event_) => setMap({ ...map, columns: { ...map.columns, [role]: Number(event_.target.value) } })}>
          ${role === "timestamp" && html`<option value="-1">none</option>`}${names.map((name, n) => html`<option value=${String(n)}>${name}</option>`)}</select><//>`)}
        <label class="check"><input type="checkbox" checked=${map.has_head} onChange=${() => setMap({ ...map, has_head: !map.has_head })} /> the first row has names</label></div>
      ${repeated && html`<p class="bad" role="alert">The file has two columns ${repeated}: leave one, or give one another name.</p>`}
      <p><button type="button" id="check" disabled=${Boolean(repeated)} onClick=${dryRun}>Check the whole file</button></p>`}
    ${progress !== null && html`<p><progress max="1" value=${progress} aria-label="progress"></progress> ${number(100 * progress)} %</p>`}
    ${found && html`<div class="panel" id="found">
      <p>${plural(found.ratings, "rating")} of ${plural(found.users.size, "user")} for ${plural(found.items.size, "item")}${found.ratings > 0 ? `, from ${number(found.low, 3)} to ${number(found.high, 3)}${found.scale.step ? ` in steps of ${found.scale.step}` : ""}` : ""}.</p>
      ${found.n_bad > 0 && html`<p class="bad">${plural(found.n_bad, "row")} cannot be read and will be left out; the first:</p><${Table} label="bad rows" columns=${[{ text: "line", number: true }, "why"]} rows=${found.bad} />`}
      ${found.ratings > 0 && open && html`<${Scale} scale=${scale} set=${setScale} />${!ready && html`<p class="bad">Not all ratings of the file are on it.</p>`}`}
      ${found.ratings > 0 && !open && !ready && html`<p class="bad">The scale of this store is ${number(status.value.scale[0], 2)} to ${number(status.value.scale[1], 2)}.</p>
        <p class="soft">A store has one, for good: <code>FOLDIN_SCALE=${asText(found.scale)} foldin up --no-play --data ./mine</code> begins one for this file.</p>`}
      <p><${Action} role=${open ? "operate" : "rate"} act=${begin} disabled=${!ready || loading.value?.busy}>Load ${plural(found.ratings, "rating")}<//></p></div>`}
    ${loading.value && html`<${Loading} />`}`;
};

/** Save all of something as a file: a link carries no key. */
const save = (path, name) => async () => {
  // A worker takes two exports at a time.
  const answer = await retrying(() => ask("GET", path, undefined, { timeout_s: 3600 }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

export const data = () => html`<h1>Data</h1><${Import} />
  <h2>Export</h2>
  <p>One JSON object a line. Large stores are exported by <code>foldin export</code>, which needs no memory for all of it.</p>
  <p>${[["/export/ratings", "ratings.ndjson"], ["/export/items", "items.ndjson"], ["/export/users", "users.ndjson"]].map(([path, name]) => html`<${Action} role="read" act=${save(path, name)}>${name}<//> <${Commands} path=${path} /> `)}</p>
  <h2>Backups</h2>
  <p>${!status.value.store_up ? "The store does not answer: whether there is a backup is not known." : status.value.backed_up ? html`The last one was made ${ago(status.value.backed_up.at)}, of ${plural(status.value.backed_up.events, "event")}.` : html`<strong>None was made yet.</strong>`}</p>
  <p><code>foldin backup FOLDER</code> copies all ratings while everything runs; <code>foldin restore</code> brings them back, also as of a moment; <code>foldin verify</code> compares store and archive; <code>foldin undo</code> brings a replaced history back.</p>`;
