// A file of items for the catalogue: shown, checked as a whole, and only then sent. Invariant: a column has one type,
// and an empty cell is no value.
import { html, useState } from "../vendor/preact.js";
import { call, retrying } from "./api.js";
import { rows } from "./csv.js";
import { number, plural } from "./format.js";
import { Action, Failure, Table } from "./parts.js";

/** The name of a column without case, spaces, punctuation and RecBole's type. */
export const plain = (name) => name.replace(/:(token|float)(_seq)?$/, "").toLowerCase().replace(/[^a-z0-9]/g, "");
// Names that files use, as `foldin import --items` knows them.
const NAMES = {
  item_id: ["itemid", "item", "id", "iid", "movieid", "productid", "sku", "asin", "bookid", "isbn"], title: ["title", "name", "movietitle", "booktitle"],
  categories: ["categories", "category", "genres", "genre", "class"], hidden: ["hidden"], available_from: ["availablefrom"], available_until: ["availableuntil"], image: ["image", "imageurl", "imurl", "poster"],
};
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const BATCH = 1000;

/** The column of each field of an item by its name; null where the names are not those of a catalogue. */
export function catalogueOf(head) {
  const names = head.map(plain);
  const found = Object.entries(NAMES).map(([field, words]) => [field, names.indexOf(words.find((word) => names.includes(word)))]);
  const columns = Object.fromEntries(found.filter(([, place]) => place >= 0));
  return "item_id" in columns && ("title" in columns || "categories" in columns) ? columns : null;
}

const value = {
  categories: (text) => text.split("|").map((each) => each.trim()).filter(Boolean),
  hidden: (text) => ({ true: true, false: false })[text.toLowerCase()] ?? text,
  available_from: (text) => (NUMBER.test(text) ? Number(text) : text),
  available_until: (text) => (NUMBER.test(text) ? Number(text) : text),
};
/** An item as the API takes it. `numbers`: the attributes that are numbers. */
function itemOf(cells, head, columns, numbers) {
  const fields = Object.entries(columns).map(([field, place]) => [field, (cells[place] ?? "").trim()]).filter(([, text]) => text !== "");
  const item = Object.fromEntries(fields.map(([field, text]) => [field, value[field]?.(text) ?? text]));
  const fieldPlaces = Object.values(columns);
  const attributes = head.map((name, place) => [name.trim(), (cells[place] ?? "").trim(), place]).filter(([, text, place]) => text !== "" && !fieldPlaces.includes(place));
  return attributes.length ? { ...item, attributes: Object.fromEntries(attributes.map(([name, text]) => [name, numbers.has(name) ? Number(text) : text])) } : item;
}

/** The rows of a file behind its head, piece by piece. */
async function* bodies(file) {
  let head = true;
  for await (const piece of rows(file)) {
    yield head ? piece.slice(1) : piece;
    head = head && !piece.length;
  }
}

/** Read the whole file: how many items, which attributes are numbers, and the lines without an id. */
async function check(file, head, columns) {
  const texts = new Set();
  const without = [];
  let items = 0;
  for await (const found of bodies(file)) {
    for (const { line, cells } of found) {
      if ((cells[columns.item_id] ?? "").trim() === "") without.push(line);
      else items += 1;
      cells.forEach((cell, place) => cell.trim() !== "" && !NUMBER.test(cell.trim()) && texts.add(place));
    }
  }
  return { items, without, numbers: new Set(head.filter((_, place) => !texts.has(place)).map((name) => name.trim())) };
}

export const Catalogue = ({ file, head, columns }) => {
  const [found, tell] = useState(null);
  const [sent, count] = useState(null);
  const [error, fail] = useState(null);
  const dryRun = () => check(file, head, columns).then((seen) => (tell(seen), fail(null)), fail);
  const load = async () => {
    let batch = [], done = 0;
    const flush = async () => {
      // Sending it again is harmless: of an item the last row counts.
      await retrying(() => call("POST", "/items", batch, { timeout_s: 120 }), { times: 60 });
      count((done += batch.length));
      batch = [];
    };
    count(0);
    for await (const some of bodies(file)) {
      for (const { cells } of some) {
        if ((cells[columns.item_id] ?? "").trim() === "") continue;
        if (batch.push(itemOf(cells, head, columns, found.numbers)) === BATCH) await flush();
      }
    }
    if (batch.length) await flush();
  };
  const role = (place) => Object.keys(columns).find((field) => columns[field] === place);
  return html`<${Table} label="what the columns are taken for" columns=${["column", "is"]} rows=${head.map((name, place) => [name, role(place) ?? `an attribute${found ? (found.numbers.has(name.trim()) ? ", a number" : ", a text") : ""}`])} />
    <p class="search"><button type="button" id="check" onClick=${dryRun}>Check the whole file</button></p><${Failure} error=${error} />
    ${found && html`<div class="panel" id="found"><p>${plural(found.items, "item")}.</p>
      ${found.without.length > 0 && html`<p class="bad">${plural(found.without.length, "row")} without an id will be left out: ${found.without.slice(0, 20).map((line) => number(line)).join(", ")}.</p>`}
      <p><${Action} role="operate" act=${load} disabled=${!found.items}>Load ${plural(found.items, "item")}<//></p></div>`}
    ${sent !== null && html`<p><span id="sent" role="status">${number(sent)} of ${number(found.items)} are stored.</span></p>`}`;
};
