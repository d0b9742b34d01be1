// All items: search, hide, and what is known of one.
import { html, useState } from "../vendor/preact.js";
import { call, get, id, status } from "./api.js";
import { fixed, number, percent, when } from "./format.js";
import { Action, Bars, Card, Commands, Failure, Field, Fold, ItemLink, Table, titled, useLoad } from "./parts.js";
import { Expected, Interval } from "./users.js";

const link = (item, title) => html`<${ItemLink} item=${item} title=${title} />`;

const Hide = ({ item, hidden, done }) => html`<${Action} role="operate" act=${async () => {
  await call("PATCH", `/items/${id(item)}`, { hidden: !hidden });
  done();
}}>${hidden ? "show again" : "hide"}<//>`;

// By title only the catalogue has an order.
const OF = { id: "all", title: "catalogue" };
const NONE = {
  id: ["No item is known yet: the first rating, event or import brings some.", "No item has an id that begins so."],
  title: ["The catalogue is empty: items are known by their ids alone.", "No title begins so."],
};

const All = () => {
  const [by, choose] = useState("id");
  const [prefix, type] = useState("");
  const [cursors, go] = useState([]);
  const cursor = cursors.at(-1);
  const { data, error, again } = useLoad((signal) => get(`/items?n=50&of=${OF[by]}&by=${by}&prefix=${id(prefix)}${cursor ? `&cursor=${id(cursor)}` : ""}`, { signal }), [by, prefix, cursor]);
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
      <button disabled=${by === "title"}>Show the item of this id</button>
    </form>
    <${Failure} error=${error} />
    ${data && html`<${Listed} items=${data.items} done=${again} empty=${data.next ? "None in this part: there is more behind it." : NONE[by][prefix ? 1 : 0]} />
      <p class="pager">${cursors.length > 0 && html`<button type="button" onClick=${() => go(cursors.slice(0, -1))}>back</button>`}
        ${data.next && html`<button type="button" onClick=${() => go([...cursors, data.next])}>more</button>`} <span class="soft">${number(data.total)} ${by === "id" ? "known, deleted ones too" : "in the catalogue"}</span></p>
      ${!data.items.some((each) => each.title) && html`<p class="soft"><code>foldin import FILE --items</code> gives items titles, categories and attributes.</p>`}`}
    <h2>Most loved</h2><p class="soft">${popular.data?.by === "events" ? "By the weight of positive events: this generation has learned no rating, or next to none." : "In the order of the score: the lower 95 % bound of what an average user would give, so that few ratings alone do not lead. The mean is that of the users who rated."}</p>
    <${Failure} error=${popular.error} />
    ${popular.data && html`<${Loved} ...${popular.data} />`}`;
};

const Listed = ({ items, done, empty }) => {
  const has = (name) => items.some((each) => each[name] !== undefined);
  const figures = [["ratings", "ratings", number], ["mean", "mean", fixed], ["positives", "positive events", number]].filter(([name]) => has(name));
  return html`<${Table} label="items" empty=${empty}
    columns=${["item", "title", ...figures.map(([, text]) => ({ text, number: true })), "categories", "attributes", ""]}
    keys=${items.map((each) => each.item_id)} rows=${items.map((each) => [
      link(each.item_id), each.title ?? "", ...figures.map(([name, , show]) => show(each[name])), (each.categories ?? []).join(", "), Attributes(each.attributes),
      html`${each.hidden && html`<span class="tag">hidden</span> `}<${Hide} item=${each.item_id} hidden=${each.hidden} done=${done} />`,
    ])} />`;
};

const Loved = ({ by, items: found, reason }) => by === "events"
  ? html`<${Table} label="most loved items" empty=${reason} columns=${["item", { text: "score", number: true }, { text: "positive events", number: true }]}
      rows=${found.map((each) => [link(each.item_id, each.title), fixed(each.score), number(each.positives)])} />`
  : html`<${Table} label="most loved items" empty=${reason} columns=${["item", { text: "score", number: true }, { text: "ratings", number: true }, { text: "mean", number: true }]}
      rows=${found.map((each) => [link(each.item_id, each.title), fixed(each.score), number(each.ratings), fixed(each.mean)])} />`;
const Attributes = (attributes) => Object.entries(attributes ?? {}).map(([name, value]) => `${name}: ${Array.isArray(value) ? value.join(", ") : value}`).join("; ");

const BY = { behaviour: "whose ratings or events go together with this one's", content: "that share categories and texts", both: "by both" };

// More would be no picture. Where the scale has no steps its parts are drawn.
const [MOST_BARS, PARTS, POINTS] = [12, 10, 20];
/** Bars of neighbouring steps, few enough to be seen together: `[{label, value}]`. */
const ofSteps = (chances, low, step) => {
  const size = Math.ceil(chances.length / MOST_BARS);
  return Array.from({ length: Math.ceil(chances.length / size) }, (_, n) => {
    const some = chances.slice(n * size, (n + 1) * size);
    const [first, last] = [low + n * size * step, low + (n * size + some.length - 1) * step];
    return { label: some.length > 1 ? `${number(first, 2)} to ${number(last, 2)}` : number(first, 2), value: some.reduce((sum, each) => sum + each, 0) };
  });
};
/** The same of a scale without steps, on which a rating is normally distributed. */
const ofCurve = ({ rating, std }, low, high) => {
  const width = (high - low) / PARTS;
  // One that is narrower than its points would be seen by none.
  const deviation = Math.max(std, width / POINTS);
  const points = Array.from({ length: PARTS * POINTS }, (_, n) => Math.exp(-0.5 * ((low + ((n + 0.5) * width) / POINTS - rating) / deviation) ** 2));
  const total = points.reduce((sum, each) => sum + each, 0);
  return Array.from({ length: PARTS }, (_, n) => ({ label: `${number(low + n * width, 2)} to ${number(low + (n + 1) * width, 2)}`, value: points.slice(n * POINTS, (n + 1) * POINTS).reduce((sum, each) => sum + each, 0) / total }));
};

const FROM = { attributes: "its attributes say what to expect", prior: "it is expected to get what any new item gets" };
/** What an unknown user would give, and what would narrow that. */
const Posterior = ({ expected, average, distribution }) => {
  const [low, high, step] = status.value.scale;
  const bars = distribution ? ofSteps(distribution, low, step) : ofCurve(expected, low, high);
  const above = bars.map((_, n) => bars.slice(n).reduce((sum, each) => sum + each.value, 0));
  return html`<h2>What an unknown user would give</h2>
    <${Bars} label="what an unknown user would give" rows=${bars.map((each) => ({ ...each, text: percent(each.value, 1) }))} />
    <${Fold} title="the numbers">${() => html`<${Table} label="what an unknown user would give, as a table" columns=${["rating", { text: "probability", number: true }, { text: "this or more", number: true }]}
      rows=${bars.map((each, n) => [each.label, percent(each.value, 1), percent(above[n], 1)])} />`}<//>
    <p class="soft">${average ? html`Each rating of the item narrows what an average user would give: it is known to lie from ${fixed(average.low)} to ${fixed(average.high)}, with 90 %. The rest of ± ${fixed(expected.std)} is how much tastes and single ratings differ: it narrows for a user of whom ratings are known.`
      : `No rating of the item is known: ${FROM[expected.basis] ?? FROM.prior}. The first ratings narrow this most.`}</p>`;
};

const One = ({ item }) => {
  const [by, choose] = useState("behaviour");
  // Only a scale with steps has a probability of each.
  const path = `/items/${id(item)}${status.value.scale[2] ? "?distribution=true" : ""}`;
  const { data, error, again } = useLoad((signal) => get(path, { signal }), [item]);
  const near = useLoad((signal) => titled(get(`/similar/${id(item)}?n=10&by=${by}`, { signal }), signal), [item, by]);
  const about = data ?? {};
  return html`<p><a href="#/items">All items</a></p><h1>${about.title ?? item}</h1><${Failure} error=${error} />
    ${data && html`<dl class="cards">
        <${Card} label="id" value=${item} />
        <${Card} label="ratings" value=${number(data.ratings)} />
        ${data.positives != null && html`<${Card} label="positive events" value=${number(data.positives)} />`}
        <${Card} label="mean" value=${fixed(data.mean)} />
        ${data.average && html`<${Card} label="an average user would give" value=${html`<span class="expected">${fixed(data.average.rating)} <${Interval} from=${data.average.low} rating=${data.average.rating} to=${data.average.high} /></span>`} note=${`${fixed(data.average.low)} to ${fixed(data.average.high)}, with 90 %`} />`}
        <${Card} label="expected of an unknown user" value=${html`<${Expected} ...${data.expected} />`} note=${`by ${data.expected.basis}`} />
      </dl>
      <${Table} label="what the catalogue says" empty="the catalogue has nothing of this item" columns=${["", ""]} rows=${[
        ["categories", (data.categories ?? []).join(", ")],
        ...Object.entries(data.attributes ?? {}).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]),
        ["available from (UTC)", when(data.available_from)], ["available until (UTC)", when(data.available_until)], ["hidden", data.hidden ? "yes: in no list" : "no"],
      ].filter(([, value]) => value !== "" && value !== "–")} />
      <p><${Hide} item=${item} hidden=${data.hidden} done=${again} /> <${Commands} path=${path} /></p>
      <${Posterior} ...${data} />`}
    <h2>Similar items</h2>
    <p>Items <select aria-label="similar by what" value=${by} onChange=${(event) => choose(event.target.value)}>${Object.entries(BY).map(([name, text]) => html`<option value=${name}>${text}</option>`)}</select></p>
    <${Failure} error=${near.error} />
    ${near.data && html`<${Table} label="similar items" empty=${near.data.reason ?? "none: the item had no rating and no event when the generation was fitted"} columns=${["item", { text: "score", number: true }]}
      rows=${near.data.items.map((each) => [link(each.item_id, each.title), fixed(each.score)])} />`}`;
};

export const items = ({ rest: [item] }) => (item ? html`<${One} item=${item} key=${item} />` : html`<${All} />`);
