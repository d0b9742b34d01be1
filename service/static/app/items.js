// The catalogue: search, hide, and what is known of one item.
import { html, useState } from "../vendor/preact.js";
import { call, get, id } from "./api.js";
import { fixed, number, when } from "./format.js";
import { Action, Card, Commands, Failure, Field, ItemLink, Table, titled, useLoad } from "./parts.js";
import { Expected } from "./users.js";

const link = (item, title) => html`<${ItemLink} item=${item} title=${title} />`;

const Hide = ({ item, hidden, done }) => html`<${Action} role="operate" act=${async () => {
  await call("PATCH", `/items/${id(item)}`, { hidden: !hidden });
  done();
}}>${hidden ? "show again" : "hide"}<//>`;

const Catalogue = () => {
  const [by, choose] = useState("id");
  const [prefix, type] = useState("");
  const [cursors, go] = useState([]);
  const cursor = cursors.at(-1);
  const { data, error, again } = useLoad((signal) => get(`/items?n=50&by=${by}&prefix=${id(prefix)}${cursor ? `&cursor=${id(cursor)}` : ""}`, { signal }), [by, prefix, cursor]);
  const popular = useLoad((signal) => titled(get("/popular?n=20", { signal }), signal), []);
  const search = (value) => (type(value), go([]));
  const open = (event) => {
    event.preventDefault();
    if (prefix) location.hash = `#/items/${id(prefix)}`;
  };
  return html`<h1>Items</h1>
    <form class="search" role="search" onSubmit=${open}>
      <${Field} label="Begins with"><input value=${prefix} autocomplete="off" spellcheck=${false} onInput=${(event) => search(event.target.value)} /><//>
      <${Field} label="By"><select value=${by} onChange=${(event) => (choose(event.target.value), go([]))}><option value="id">id</option><option value="title">title</option></select><//>
      <button disabled=${by === "title"} title="an item that has ratings alone, too">Show the item of this id</button>
    </form>
    <${Failure} error=${error} />
    ${data && html`<${Table} label="the catalogue" empty=${prefix ? "Nothing in the catalogue begins so; an item that has ratings alone is shown by its whole id." : "The catalogue is empty: items that are rated are known without it, and shown by their ids. `foldin import FILE --items` gives titles, categories and attributes."}
        columns=${["item", "title", "categories", "attributes", ""]}
        keys=${data.items.map((each) => each.item_id)} rows=${data.items.map((each) => [link(each.item_id), each.title ?? "", (each.categories ?? []).join(", "), Attributes(each.attributes), html`${each.hidden && html`<span class="tag">hidden</span> `}<${Hide} item=${each.item_id} hidden=${each.hidden} done=${again} />`])} />
      <p class="pager">${cursors.length > 0 && html`<button type="button" onClick=${() => go(cursors.slice(0, -1))}>back</button>`}
        ${data.next && html`<button type="button" onClick=${() => go([...cursors, data.next])}>more</button>`} <span class="soft">${number(data.total)} in the catalogue</span></p>`}
    <h2>Most loved</h2><p class="soft">${popular.data?.by === "events" ? "By the weight of positive events: this generation has learned no rating, or next to none." : "By the lower 95 % bound of what an average user would give."}</p>
    <${Failure} error=${popular.error} />
    ${popular.data && html`<${Loved} ...${popular.data} />`}`;
};
const Loved = ({ by, items: found, reason }) => by === "events"
  ? html`<${Table} label="most loved items" empty=${reason} columns=${["item", { text: "score", number: true }, { text: "positive events", number: true }]}
      rows=${found.map((each) => [link(each.item_id, each.title), fixed(each.score), number(each.positives)])} />`
  : html`<${Table} label="most loved items" empty=${reason} columns=${["item", { text: "score", number: true }, { text: "ratings", number: true }, { text: "mean", number: true }]}
      rows=${found.map((each) => [link(each.item_id, each.title), fixed(each.score), number(each.ratings), fixed(each.mean)])} />`;
const Attributes = (attributes) => Object.entries(attributes ?? {}).map(([name, value]) => `${name}: ${Array.isArray(value) ? value.join(", ") : value}`).join("; ");

const BY = { behaviour: "whose ratings or events go together with this one's", content: "that share categories and texts", both: "by both" };

const One = ({ item }) => {
  const [by, choose] = useState("behaviour");
  const { data, error, again } = useLoad((signal) => get(`/items/${id(item)}`, { signal }), [item]);
  const near = useLoad((signal) => titled(get(`/similar/${id(item)}?n=10&by=${by}`, { signal }), signal), [item, by]);
  const about = data ?? {};
  return html`<p><a href="#/items">All items</a></p><h1>${about.title ?? item}</h1><${Failure} error=${error} />
    ${data && html`<dl class="cards">
        <${Card} label="id" value=${item} />
        <${Card} label="ratings" value=${number(data.ratings)} />
        ${data.positives != null && html`<${Card} label="positive events" value=${number(data.positives)} />`}
        <${Card} label="mean" value=${fixed(data.mean)} />
        <${Card} label="expected of an unknown user" value=${data.expected ? html`<${Expected} ...${data.expected} />` : "–"} note=${data.expected ? `by ${data.expected.basis}` : ""} />
      </dl>
      <${Table} label="what the catalogue says" empty="the catalogue has nothing of this item" columns=${["", ""]} rows=${[
        ["categories", (data.categories ?? []).join(", ")],
        ...Object.entries(data.attributes ?? {}).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]),
        ["available from (UTC)", when(data.available_from)], ["available until (UTC)", when(data.available_until)], ["hidden", data.hidden ? "yes: in no list" : "no"],
      ].filter(([, value]) => value !== "" && value !== "–")} />
      <p><${Hide} item=${item} hidden=${data.hidden} done=${again} /> <${Commands} path=${`/items/${id(item)}`} /></p>`}
    <h2>Near</h2>
    <p>Items <select aria-label="near by what" value=${by} onChange=${(event) => choose(event.target.value)}>${Object.entries(BY).map(([name, text]) => html`<option value=${name}>${text}</option>`)}</select></p>
    <${Failure} error=${near.error} />
    ${near.data && html`<${Table} label="similar items" empty=${near.data.reason ?? "none: the item had no rating and no event when the generation was fitted"} columns=${["item", { text: "score", number: true }]}
      rows=${near.data.items.map((each) => [link(each.item_id, each.title), fixed(each.score)])} />`}`;
};

export const items = ({ rest: [item] }) => (item ? html`<${One} item=${item} key=${item} />` : html`<${Catalogue} />`);
