// Ratings that a reader gives and takes back for a stored user. Invariant: each write has its undo beside it, which
// stores again what was stored before.
import { html, useEffect, useState } from "../vendor/preact.js";
import { call, get, id, retrying, status } from "./api.js";
import { number } from "./format.js";
import { Action, Failure, ItemLink, narrow, useAct } from "./parts.js";

const PAGE = 1000;
/** The stored rating of an item with its time and context; null where there is none. */
async function stored(user, item) {
  for (let offset = 0; ; offset += PAGE) {
    const asked = retrying(() => get(`/users/${id(user)}/ratings?n=${PAGE}&offset=${offset}`));
    const { ratings, total } = await asked.catch((error) => {
      if (error.code !== "unknown_user") throw error;
      return { ratings: [], total: 0 };
    });
    const found = ratings.find((each) => each.item_id === item);
    if (found || offset + PAGE >= total) return found ?? null;
  }
}
// Sending either again is harmless.
const write = (user, item, rating) => retrying(() => (rating ? call("POST", "/ratings", { user_id: user, ...rating }) : call("DELETE", `/ratings/${id(user)}/${id(item)}`)));

/** What a reader did in this mode: `{acts, act, undo}`. `act(part, place, each, rating)` stores `rating` of `each`, null takes
 *  it back; `part` and `place` say in which list and where in it that was. */
export function useActs(user, done) {
  const [acts, set] = useState([]);
  const act = async (part, place, { item_id, title }, rating) => {
    const before = await stored(user, item_id);
    await write(user, item_id, rating === null ? null : { item_id, rating });
    set((all) => [...all.filter((each) => each.part !== part || each.item_id !== item_id), { part, place, item_id, title, rating, before }]);
    done();
  };
  const undo = async (one) => {
    await write(user, one.item_id, one.before);
    set((all) => all.filter((each) => each !== one));
    done();
  };
  return { acts, act, undo };
}

/** The rows of a list with the acts that were done in it, each where it was done. */
export function withActs(rows, acts, part) {
  const all = [...rows];
  for (const act of acts.filter((each) => each.part === part).sort((a, b) => a.place - b.place)) all.splice(act.place, 0, { act });
  return all;
}

/** What was done, and its undo. */
export const Act = ({ act, undo }) => html`<span role="status">${act.rating === null ? "taken back" : `rated ${number(act.rating, 2)}`}${act.before ? `, was ${number(act.before.rating, 2)}` : ""}</span>
  <${Action} role="rate" act=${() => undo(act)} label=${`undo ${act.title ?? act.item_id}`}>undo<//>`;

export const TakeBack = ({ act }) => html`<${Action} role="rate" danger act=${act}>take back<//>`;

/** Reading is what a page of a user is for; a mode that is named writes. */
export const Mode = ({ user, trying, set }) => trying
  ? html`<p class="note" id="mode">You are trying ratings: each one that you give or take back here is <strong>stored as ${user}'s own</strong>, and counts at once. "undo" beside it stores again what was there before.
      <button type="button" onClick=${() => set(false)}>Only read</button></p>`
  : html`<p id="mode"><${Action} role="rate" act=${async () => set(true)}>Try ratings<//> <span class="soft">Nothing on this page changes what is stored, unless you try ratings.</span></p>`;

const MOST_BUTTONS = 11;
const MOST_CHOICES = 101;
/** One control for a rating: buttons in a line where there is room for them, a choice where there is none or steps are
 *  many, and a number on a scale without steps. `give`: is told the rating. */
export function Rate({ item, rated, give }) {
  const [low, high, step] = status.value.scale;
  const steps = step ? Math.round((high - low) / step) + 1 : Infinity;
  const values = steps <= MOST_CHOICES ? Array.from({ length: steps }, (_, n) => low + n * step) : [];
  const [value, set] = useState(rated ?? "");
  const { busy, error, press } = useAct(give);
  useEffect(() => set(rated ?? ""), [rated]);
  if (steps <= MOST_BUTTONS && !narrow.value) {
    return html`<span class="rate" role="group" aria-label=${`rate ${item}`}>${values.map(
      (each) => html`<button type="button" disabled=${busy} aria-pressed=${rated === each} class=${rated === each ? "chosen" : ""} onClick=${() => press(each)}>${number(each, 2)}</button>`,
    )}<${Failure} error=${error} /></span>`;
  }
  if (values.length) {
    return html`<span class="rate"><select aria-label=${`rating of ${item}`} disabled=${busy} value=${String(rated ?? "")} onChange=${(event) => press(Number(event.target.value))}>
      ${rated === undefined && html`<option value="">rate</option>`}${values.map((each) => html`<option value=${String(each)}>${number(each, 2)}</option>`)}</select><${Failure} error=${error} /></span>`;
  }
  return html`<span class="rate"><input type="number" aria-label=${`rating of ${item}, ${low} to ${high}`} min=${low} max=${high} step=${step ?? "any"} value=${value} onInput=${(event) => set(event.target.value)} />
    <button type="button" disabled=${busy || value === ""} onClick=${() => press(Number(value))}>rate</button><${Failure} error=${error} /></span>`;
}

/** Rate an item that is in no list of the page. */
export const Other = ({ doing: { acts, act, undo } }) => {
  const [item, type] = useState("");
  return html`<h2>Rate another item</h2>
    ${acts.filter((each) => each.part === "other").map((each) => html`<p key=${each.item_id}><${ItemLink} item=${each.item_id} /> <${Act} act=${each} undo=${undo} /></p>`)}
    <div class="search"><label class="field"><span>Item</span><input value=${item} autocomplete="off" spellcheck=${false} onInput=${(event) => type(event.target.value)} /></label>
    ${item && html`<${Rate} item=${item} key=${item} give=${(rating) => act("other", 0, { item_id: item }, rating)} />`}</div>`;
};
