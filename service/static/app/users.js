// One user: what was rated, what is recommended and why. Invariant: only the mode "Try ratings" writes.
import { html, useState } from "../vendor/preact.js";
import { call, get, id, retrying, status } from "./api.js";
import { asPython, fixed, number, plural, significant, when } from "./format.js";
import { Bars, Card, Commands, Failure, Field, ItemLink, Table, titled, useLoad } from "./parts.js";
import { Act, Mode, Other, Rate, TakeBack, useActs, withActs } from "./rating.js";

const python = (call) => asPython(`print(foldin.${call})`);
const text = (value) => JSON.stringify(value);

const SHOWN = 20;
// Each page looks through a part of the store: of a large one that goes on until the reader has seen enough.
const PAGES = 20;
const enough = ({ users, next }, prefix) => next === null || users.length >= SHOWN || (prefix !== "" && users.includes(prefix));
/** The first users whose ids begin so, told page by page, on from what was `found`: `{users, next, error}`. There is no
 *  index of ids: a page may be empty though more follow, so that the search ends where the very id is found. */
const find = async (prefix, found, signal, tell) => {
  // Who types on asks for something else.
  if (!found) await new Promise((go) => setTimeout(go, 200));
  let { users, next } = found ?? { users: [], next: "" };
  for (let n = 0; n < PAGES && !enough({ users, next }, prefix) && !signal.aborted; n++) {
    try {
      const page = await retrying(() => get(`/users?n=${SHOWN}&prefix=${id(prefix)}${next && `&cursor=${next}`}`, { signal }), { signal });
      users = [...new Set([...users, ...page.users])].slice(0, SHOWN);
      next = page.next;
    } catch (error) {
      // What is found stays, and the search can go on behind it.
      return { users, next, error };
    }
    tell({ users, next });
  }
  return { users, next };
};

const Search = ({ user }) => {
  const [prefix, type] = useState(user ?? "");
  const [from, goOn] = useState(null);
  const { data, busy } = useLoad((signal, tell) => (prefix === user ? Promise.resolve(null) : find(prefix, from, signal, tell)), [prefix, from]);
  const open = (event) => {
    event.preventDefault();
    location.hash = `#/users/${id(prefix)}`;
  };
  const typed = (event) => {
    goOn(null);
    type(event.target.value);
  };
  const more = data && !busy && !enough(data, prefix);
  const none = more ? "None in the part of the store that was looked through." : "No user that begins so.";
  return html`<form class="search" role="search" onSubmit=${open}>
      <${Field} label="User"><input id="user" value=${prefix} autocomplete="off" spellcheck=${false} placeholder="id, or how it begins" onInput=${typed} /><//>
      <button>Show</button> <a class="button" href="#/users">Try as a new visitor</a>
    </form>
    ${!busy && html`<${Failure} error=${data?.error} />`}
    <p class="found">${(data?.users ?? []).filter((each) => each.startsWith(prefix)).map((each) => html`<a href=${`#/users/${id(each)}`}>${each}</a> `)}
      <span class="soft" role="status">${busy ? "looking…" : data && !data.users.length ? none : ""}</span>
      ${more && html` <button type="button" class="quiet" onClick=${() => goOn({ users: data.users, next: data.next })}>Look further</button>`}</p>`;
};

const SHOWN_PARTS = 12;
/** Bars of the largest parts and of all others together, so that they add up. */
const parts = (all, label) => {
  const bars = all.slice(0, SHOWN_PARTS).map((each) => ({ label: label(each), value: each.contribution, text: signed(each.contribution) }));
  const rest = all.slice(SHOWN_PARTS).reduce((sum, each) => sum + each.contribution, 0);
  return all.length > SHOWN_PARTS ? [...bars, { label: plural(all.length - SHOWN_PARTS, "other"), value: rest, text: signed(rest) }] : bars;
};

/** Why an item is in the list, as bars that add up. */
const Why = ({ user, item }) => {
  const ask = async (signal) => {
    const why = await titled(get(`/explain/${id(user)}/${id(item)}`, { signal }), signal, "parts");
    return { ...why, relevance: why.relevance && (await titled(why.relevance, signal, "parts")) };
  };
  const { data, error } = useLoad(ask, [user, item, status.value?.accepted_ratings]);
  if (error) return html`<${Failure} error=${error} />`;
  if (!data) return html`<p class="soft">asking why…</p>`;
  return html`<section class="why" aria-label=${`why ${item}`}>
    ${data.parts.length > 0 && html`<p>Expected rating <strong>${fixed(data.rating)}</strong> ± ${fixed(data.std)} = ${fixed(data.base)} without this user's ratings, and what each of them adds:</p>
      <${Bars} label="what each rating adds" rows=${parts(data.parts, (each) => `${each.title} (rated ${number(each.rating, 2)})`)} />`}
    ${data.relevance && html`<p>Relevance <strong>${fixed(data.relevance.value)}</strong> = ${fixed(data.relevance.base)} without them, and</p>
      <${Bars} label="what each item adds to the relevance" rows=${parts(data.relevance.parts, (each) => each.title)} />`}
    <${Commands} path=${`/explain/${id(user)}/${id(item)}`} python=${python(`explain(${text(user)}, ${text(item)})`)} />
  </section>`;
};
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

/** Where ratings from `from` to `to` lie on the scale, and `rating` among them. */
export const Interval = ({ from, rating, to }) => {
  const [low, high] = status.value.scale;
  const at = (value) => (100 * (Math.min(Math.max(value, low), high) - low)) / (high - low);
  return html`<span class="interval" aria-hidden="true"><i style=${{ left: `${at(from)}%`, width: `${at(to) - at(from)}%` }}></i><b style=${{ left: `${at(rating)}%` }}></b></span>`;
};

/** The expected rating with its deviation, and both on the scale. */
export const Expected = ({ rating, std }) => html`<span class="expected">${fixed(rating)} ${std !== undefined && html`<span class="soft">± ${fixed(std)}</span>
    <${Interval} from=${rating - std} rating=${rating} to=${rating + std} />`}</span>`;

/** `doing`: what a reader who tries ratings did and may do, null for one who reads; `user`: null for one who is not stored. */
const Recommended = ({ list, user, doing = null, before }) => {
  const [why, open] = useState(null);
  const place = new Map(before.map((name, n) => [name, n]));
  const moved = (name, n) => {
    if (!before.length) return "";
    if (!place.has(name)) return html`<span class="good" title="new in the list">new</span>`;
    const by = place.get(name) - n;
    return by ? html`<span class=${by > 0 ? "good" : "soft"}>${by > 0 ? "▲" : "▼"}${Math.abs(by)}</span>` : "";
  };
  const all = withActs(list.items.map((each, n) => ({ each, n })), doing?.acts ?? [], "recommended");
  const row = ({ act, each, n }, at) => act ? ["", html`<${ItemLink} item=${act.item_id} title=${act.title} />`, "", "", "", html`<${Act} act=${act} undo=${doing.undo} />`] : [
    html`${n + 1} ${moved(each.item_id, n)}`,
    user === null ? html`<${ItemLink} item=${each.item_id} title=${each.title} />` : html`<button type="button" class="quiet" title=${each.item_id} aria-expanded=${why === each.item_id} onClick=${() => open(why === each.item_id ? null : each.item_id)}>${each.title}<small> why?</small></button>`,
    html`<${Expected} rating=${each.rating ?? each.score} std=${each.std} />`, significant(each.relevance), significant(each.score),
    ...(doing ? [html`<${Rate} item=${each.item_id} give=${(rating) => doing.act("recommended", at, each, rating)} />`] : []),
  ];
  return html`<${Table} label="recommended" empty=${list.reason ?? "nothing is left to recommend"}
      columns=${["", "item", { text: "expected rating", number: true }, { text: "relevance", number: true }, { text: "score", number: true }, ...(doing ? ["rate it"] : [])]}
      keys=${all.map(({ act, each }) => (act ? `act ${act.item_id}` : each.item_id))} rows=${all.map(row)} />
    ${list.items.some((each) => each.item_id === why) && html`<${Why} user=${user} item=${why} />`}`;
};

/** The list of a user with error bars: what /predict says of its items is asked in the same turn. */
async function recommended(user, signal) {
  const list = await get(`/recommend/${id(user)}?n=10`, { signal });
  if (!list.items.length) return list;
  const item_ids = list.items.map((each) => each.item_id);
  const [{ predictions }, { items }] = await Promise.all([call("POST", "/predict", { user_id: user, item_ids }, { signal }), titled(list, signal)]);
  return { ...list, items: items.map((each, n) => ({ ...each, std: predictions[n].std })) };
}

const History = ({ user, turn, doing }) => {
  const [from, page] = useState(0);
  const { data, error } = useLoad((signal) => titled(get(`/users/${id(user)}/ratings?n=20&offset=${from}`, { signal }), signal, "ratings"), [user, turn, from]);
  if (error) return html`<${Failure} error=${error} />`;
  if (!data) return html`<p class="soft">reading…</p>`;
  const part = `ratings ${from}`;
  const all = withActs(data.ratings, doing?.acts ?? [], part);
  const row = ({ act, ...each }, at) => {
    if (act) return [html`<${ItemLink} item=${act.item_id} title=${act.title} />`, "", "", html`<${Act} act=${act} undo=${doing.undo} />`];
    const shown = [html`<${ItemLink} item=${each.item_id} title=${each.title} />`, doing ? html`<${Rate} item=${each.item_id} rated=${each.rating} give=${(rating) => doing.act(part, at, each, rating)} />` : number(each.rating, 2), when(each.timestamp)];
    return doing ? [...shown, html`<${TakeBack} act=${() => doing.act(part, at, each, null)} />`] : shown;
  };
  return html`<${Table} label="ratings of this user" empty="no rating"
      columns=${["item", "rating", "when (UTC)", ...(doing ? [""] : [])]} keys=${all.map(({ act, item_id }) => (act ? `act ${act.item_id}` : item_id))} rows=${all.map(row)} />
    <p class="pager">${from > 0 && html`<button type="button" onClick=${() => page(Math.max(0, from - 20))}>later ones</button>`}
      ${from + 20 < data.total && html`<button type="button" onClick=${() => page(from + 20)}>earlier ones</button>`} <span class="soft">${plural(data.total, "rating")} in all</span></p>`;
};

/** What was done besides rating, where there is any. */
const Events = ({ user, turn }) => {
  const { data, error } = useLoad((signal) => titled(get(`/users/${id(user)}/events?n=50`, { signal }), signal, "events"), [user, turn]);
  if (!data?.total) return html`<${Failure} error=${error} />`;
  return html`<h2>Other events, the latest first</h2>
    <${Table} label="other events of this user" columns=${["item", "type", { text: "value", number: true }, "when (UTC)"]}
      rows=${data.events.map((each) => [html`<${ItemLink} item=${each.item_id} title=${each.title} />`, each.type, number(each.value, 2), when(each.timestamp)])} />
    <p class="soft">${plural(data.total, "event")} in all</p>`;
};

const Stored = ({ user }) => {
  const [turn, next] = useState(0);
  const [before, keep] = useState([]);
  const [trying, set] = useState(false);
  const about = useLoad((signal) => get(`/users/${id(user)}`, { signal }), [user, turn]);
  const list = useLoad((signal) => recommended(user, signal), [user, turn]);
  const acts = useActs(user, () => {
    keep(list.data ? list.data.items.map((each) => each.item_id) : []);
    // This one may be of an earlier turn: several ratings can be on their way.
    next((before) => before + 1);
  });
  const doing = trying ? acts : null;
  const unknown = about.error?.code === "unknown_user";
  return html`<h1>${user}</h1>
    ${about.data && html`<dl class="cards">
      <${Card} label="ratings" value=${number(about.data.ratings)} note=${about.data.events !== about.data.ratings ? `${number(about.data.events)} events in all` : ""} />
      <${Card} label="mean" value=${fixed(about.data.mean)} />
      <${Card} label="expected of an unknown item" value=${fixed(about.data.expected.rating)} note=${`± ${fixed(about.data.expected.std)}`} /></dl>`}
    ${unknown ? html`<p class="soft">No rating of this user is known: the list is what everybody gets.</p>` : html`<${Failure} error=${about.error} />`}
    <${Mode} user=${user} trying=${trying} set=${set} />
    <h2>Recommended</h2>
    <${Failure} error=${list.error} />
    ${list.data && html`<${Recommended} list=${list.data} user=${user} doing=${doing} before=${before} />
      <${Commands} path=${`/recommend/${id(user)}?n=10`} python=${python(`recommend(${text(user)}, n=10)`)} />`}
    ${!unknown && html`<h2>Ratings, the latest first</h2><${History} user=${user} turn=${turn} doing=${doing} />`}
    ${about.data && html`<${Events} user=${user} turn=${turn} />`}
    ${doing && html`<${Other} doing=${doing} />`}`;
};

/** What the API recommends for ratings that are not stored. */
const Anonymous = () => {
  const [ratings, set] = useState([]);
  const [item, type] = useState("");
  const [rating, choose] = useState("");
  const body = { ratings, n: 10 };
  const list = useLoad((signal) => titled(call("POST", "/recommend", body, { signal }), signal), [ratings]);
  const add = (event) => {
    event.preventDefault();
    set([...ratings.filter((each) => each.item_id !== item), { item_id: item, rating: Number(rating) }]);
    type("");
  };
  const [low, high, step] = status.value?.scale ?? [1, 5, 1];
  return html`<h1>Try as a new visitor</h1>
    <p>Give some ratings, and see what would be recommended; nothing is kept.</p>
    <form class="search" onSubmit=${add}>
      <${Field} label="Item"><input value=${item} required autocomplete="off" spellcheck=${false} onInput=${(event) => type(event.target.value)} /><//>
      <${Field} label=${`Rating, ${number(low, 2)} to ${number(high, 2)}`}><input type="number" min=${low} max=${high} step=${step ?? "any"} required value=${rating} onInput=${(event) => choose(event.target.value)} /><//>
      <button>Add</button></form>
    ${ratings.length > 0 && html`<p class="found">${ratings.map((each) => html`<button type="button" class="quiet" title="leave it out" onClick=${() => set(ratings.filter((other) => other !== each))}>${each.item_id}: ${number(each.rating, 2)} ✕</button> `)}</p>`}
    <h2>Recommended</h2><${Failure} error=${list.error} />
    ${list.data && html`<${Recommended} list=${list.data} user=${null} before=${[]} />
      ${list.data.ignored > 0 && html`<p class="soft">${plural(list.data.ignored, "rating")} of items that are not known did not count.</p>`}
      <${Commands} method="POST" path="/recommend" body=${body} python=${python(`recommend_anonymous(ratings=${text(ratings)}, n=10)`)} />`}`;
};

export const users = ({ rest: [user] }) => html`<${Search} user=${user} key=${user ?? ""} />
  ${user ? html`<${Stored} user=${user} key=${user} />` : html`<${Anonymous} />`}`;
