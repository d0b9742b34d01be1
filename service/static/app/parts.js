// What pages are made of. Invariant: each chart has its numbers in a table, each button says which role it needs.
import { html, signal, useEffect, useRef, useState } from "../vendor/preact.js";
import { allowed, get, id, passes } from "./api.js";
import { asCurl, bytes, number, plural, when } from "./format.js";

// As the style sheet has it: below this width rows are cards.
const phone = matchMedia("(max-width: 40rem)");
export const narrow = signal(phone.matches);
phone.addEventListener("change", () => (narrow.value = phone.matches));

// Seconds before a load that failed is tried again: twice as long each time.
const [FIRST_WAIT_S, LONGEST_WAIT_S] = [2, 30];
/** Ask for something and again when `inputs` change; `ask` may tell parts of the answer before its end. Returns `{data, error, busy, again}`;
 *  of two answers the later call's counts. What fails for a while is asked again by itself. */
export function useLoad(ask, inputs) {
  const [state, set] = useState({ data: null, error: null, busy: true });
  const [turn, again] = useState(0);
  const tries = useRef(0);
  const retry = () => again((before) => before + 1);
  useEffect(() => void (tries.current = 0), inputs);
  useEffect(() => {
    const abort = new AbortController();
    let timer;
    set((before) => ({ ...before, busy: true }));
    const part = (data) => abort.signal.aborted || set({ data, error: null, busy: true });
    const failed = (error) => {
      if (abort.signal.aborted) return;
      set({ data: null, error, busy: false });
      if (!passes(error)) return;
      error.wait_s = error.retryAfter ?? Math.min(FIRST_WAIT_S * 2 ** tries.current++, LONGEST_WAIT_S);
      timer = setTimeout(retry, 1000 * error.wait_s);
    };
    ask(abort.signal, part).then((data) => abort.signal.aborted || set({ data, error: null, busy: false }), failed);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [...inputs, turn]);
  return { ...state, again: retry };
}

// No list of the pages shows more.
const MOST_TITLES = 50;
// A service takes an address of 8,190 bytes, nginx before it a few less: ten of the longest ids.
const MOST_ADDRESS = 8000;
/** The addresses of calls that name items, as few as there can be. */
const naming = (ids) => {
  const address = (some) => `/items?ids=${id(JSON.stringify(some))}`;
  const parts = [];
  for (const each of ids) {
    const last = parts.at(-1);
    if (last && address([...last, each]).length <= MOST_ADDRESS) last.push(each);
    else parts.push([each]);
  }
  return parts.map(address);
};
/** An answer, or its promise, with the titles of the items in its list `name`; their ids where the catalogue has none,
 *  or cannot be asked. */
export async function titled(answer, signal, name = "items") {
  const found = await answer;
  const ids = [...new Set(found[name].slice(0, MOST_TITLES).map((each) => each.item_id))];
  const known = await Promise.all(naming(ids).map((address) => get(address, { signal }).catch(() => ({ items: [] }))));
  const titles = new Map(known.flatMap(({ items }) => items.map((each) => [each.item_id, each.title])));
  return { ...found, [name]: found[name].map((each) => ({ ...each, title: titles.get(each.item_id) || each.item_id })) };
}
export const ItemLink = ({ item, title }) => html`<a href=${`#/items/${id(item)}`} title=${item}>${title ?? item}</a>`;

// The service redirects to the manual where there is one, and answers with a page in its place where there is none.
const manual = signal(false);
fetch("/manual", { redirect: "manual" }).then((answer) => (manual.value = answer.type === "opaqueredirect")).catch(() => {});
/** A link to a page of the manual; where the manual is not built, which file of the sources has it. */
export const Manual = ({ page, heading, children }) => manual.value
  ? html`<a href=${`/manual/${page}.html${heading ? `#${id(heading.toLowerCase())}` : ""}`}>${children}</a>`
  : html`<span>${children} (<code>docs/${page}.md</code> of the sources${heading ? `, ${heading}` : ""})</span>`;

export const Card = ({ label, value, note, kind = "" }) => html`
  <div class="card"><dt>${label}</dt><dd class=${kind}>${value}${note && html`<small>${note}</small>`}</dd></div>`;

/** `columns`: texts, or `{text, number: true}` for one that is set right. `rows`: arrays of cells. `keys`: what each row
 *  is of, so that what is typed and said in a row moves with it. On a phone a row of a wide table is a card. */
export const Table = ({ columns, rows, keys = [], empty = "none yet", label }) => {
  const heads = columns.map((each) => (typeof each === "string" ? { text: each } : each));
  return html`<div class=${`scroll ${heads.length > 2 ? "cardlike" : ""}`} tabindex="0" role="region" aria-label=${label}>
    <table>
      <thead><tr>${heads.map((each) => (each.text ? html`<th scope="col" class=${each.number ? "right" : ""}>${each.text}</th>` : html`<td></td>`))}</tr></thead>
      <tbody>
        ${rows.map((cells, n) => html`<tr key=${keys[n]}>${cells.map((cell, place) => html`<td class=${heads[place]?.number ? "right" : ""} data-label=${heads[place]?.text}>${cell}</td>`)}</tr>`)}
        ${!rows.length && html`<tr><td colspan=${heads.length} class="soft">${empty}</td></tr>`}
      </tbody>
    </table>
  </div>`;
};

export const Failure = ({ error }) =>
  error &&
  html`<p class="bad" role="alert">${error.message}${error.field ? ` (field ${error.field})` : ""}
    ${error.wait_s ? ` (asked again in ${plural(error.wait_s, "second")})` : error.retryAfter ? ` (try again in ${plural(error.retryAfter, "second")})` : ""}</p>`;

/** A call that a reader makes: `{busy, error, press}`. */
export function useAct(act) {
  const [state, set] = useState({ busy: false, error: null });
  const press = async (...what) => {
    set({ busy: true, error: null });
    try {
      await act(...what);
      set({ busy: false, error: null });
    } catch (error) {
      set({ busy: false, error });
    }
  };
  return { ...state, press };
}

/** A button that calls the API: off for a key of too small a role, and while it is at work; shows what went wrong. */
export function Action({ role, act, children, danger, disabled, label }) {
  const { busy, error, press } = useAct(act);
  const may = allowed(role);
  const why = may ? undefined : `needs a key with the role ${role}`;
  return html`<span class="action"><button type="button" class=${danger ? "danger" : ""} aria-label=${label} disabled=${!may || busy || disabled} title=${why} onClick=${() => press()}>${children}</button>
    <${Failure} error=${error} /></span>`;
}

/** Horizontal bars from a common zero: that is left, and in the middle where there are values below it. `rows`: `{label, value, text}`. */
export const Bars = ({ rows, label }) => {
  const most = Math.max(...rows.map((each) => Math.abs(each.value)), 1e-12);
  const zero = rows.some((each) => each.value < 0) ? 50 : 0;
  return html`<ul class="bars" aria-label=${label}>
    ${rows.map(
      ({ label: name, value, text }) => html`<li>
        <span class="name">${name}</span>
        <span class="bar" aria-hidden="true" style=${{ backgroundPosition: `${zero}%` }}><i class=${value < 0 ? "less" : "more"} style=${{ width: `${((100 - zero) * Math.abs(value)) / most}%`, left: value < 0 ? "auto" : `${zero}%` }}></i></span>
        <span class="figure">${text}</span>
      </li>`,
    )}
  </ul>`;
};

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Steps of an axis of bytes that are round in the unit they are shown in: from a megabyte to hundreds of gigabytes.
const MEMORY = [2 ** 20, 2 ** 30].flatMap((unit) => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((each) => each * unit));
/** The texts of an axis: numbers without a unit as they are, as `format` may round two places to one text. */
const ticks = (values, format) => values.map((value) => (/[^\d.,]/.test(format(value)) ? format(value) : number(value, 6)));
/** What a legend says: of the moment that is pointed at, else of the last that is known. */
const told = (values, show) => (_, value, __, at) => show(at == null ? values.findLast((each) => each !== null) : value);
const COLOURS = ["--mark", "--other", "--third"];

/** Lines over time. `times`: seconds since 1970; `lines`: `{label, values}`, null where nothing is known; `marks`: `{at, text}`. */
export function Chart({ title, times, lines, marks = [], format = (value) => number(value, 3), empty = "nothing yet" }) {
  const place = useRef(null);
  const drawn = lines.some((line) => line.values.some((value) => value !== null));
  useEffect(() => {
    let plot, gone = false, watch;
    const draw = async () => {
      const { default: Plot } = await import("../vendor/uplot.js");
      if (gone || !place.current) return;
      const axis = { stroke: token("--soft"), grid: { stroke: token("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
      const series = lines.map(({ label, dash, values }, n) => ({ label, stroke: token(COLOURS[n]), width: 2, dash, value: told(values, format), spanGaps: true }));
      const markLines = (u) => {
        u.ctx.save();
        u.ctx.strokeStyle = token("--soft");
        u.ctx.setLineDash([2, 4]);
        for (const { at } of marks) {
          const x = Math.round(u.valToPos(at, "x", true));
          if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
        }
        u.ctx.restore();
      };
      plot?.destroy();
      plot = new Plot(
        {
          width: place.current.clientWidth, height: 190, series: [{ label: "UTC", value: told(times, when) }, ...series],
          tzDate: (moment) => Plot.tzDate(new Date(moment * 1000), "Etc/UTC"),
          axes: [{ ...axis, values: (_, moments, __, ___, step_s) => moments.map((each) => (step_s < 86400 ? when(each).slice(11) : when(each).slice(5, 10))) }, { ...axis, size: 64, ...(format === bytes ? { incrs: MEMORY } : {}), values: (_, values) => ticks(values, format) }],
          scales: { y: { range: (_, low, high) => (low === null ? [0, 1] : [Math.min(0, low), high + (high - Math.min(0, low)) * 0.1 || 1]) } },
          hooks: { drawClear: [markLines] }, legend: { live: true },
        },
        [times, ...lines.map((line) => line.values)],
        place.current,
      );
    };
    if (drawn) {
      draw();
      watch = new ResizeObserver(() => plot && place.current && plot.setSize({ width: place.current.clientWidth, height: 190 }));
      watch.observe(place.current);
    }
    return () => {
      gone = true;
      watch?.disconnect();
      plot?.destroy();
    };
  }, [times, drawn]);
  const columns = ["UTC", ...lines.map(({ label }) => ({ text: label, number: true }))];
  const rows = () => times.map((moment, n) => [when(moment), ...lines.map(({ values }) => (values[n] === null ? "–" : format(values[n])))]).reverse();
  return html`<figure class="chart">
    <figcaption>${title}</figcaption>
    <div ref=${place} aria-hidden="true"></div>
    ${!drawn && html`<p class="soft">${empty}</p>`}
    ${drawn && html`<${Fold} title="the numbers">${() => html`<${Table} label=${`${title}, as a table`} columns=${columns} rows=${rows()} />`}<//>`}
    ${marks.length > 0 && html`<p class="soft marks">dotted: ${marks.map(({ text }) => text).join(", ")}</p>`}
  </figure>`;
}

/** What is drawn only while it is open. `children`: a function. */
export function Fold({ title, children }) {
  const [open, set] = useState(false);
  return html`<details open=${open} onToggle=${(event) => set(event.currentTarget.open)}><summary>${title}</summary>${open && children()}</details>`;
}

/** The call that a part of a page makes, to be copied; or a program alone. */
export function Commands({ method = "GET", path, body, python }) {
  const [said, say] = useState("");
  const timer = useRef(0);
  const copy = async (text, what) => {
    clearTimeout(timer.current);
    try {
      await navigator.clipboard.writeText(text);
      say(`copied as ${what}`);
      timer.current = setTimeout(() => say(""), 8000);
    } catch {
      // Without TLS a browser has no clipboard for pages but that of this machine: it stays, to be selected.
      say(text);
    }
  };
  return html`<span class="commands">
    ${path && html`<button type="button" class="quiet" onClick=${() => copy(asCurl(method, path, body), "curl")}>copy as curl</button>`}
    ${python && html`<button type="button" class="quiet" onClick=${() => copy(python, "Python")}>copy as Python</button>`}
    <span role="status" class="soft">${said}</span>
  </span>`;
}

/** A field with its name. */
export const Field = ({ label, children }) => html`<label class="field"><span>${label}</span>${children}</label>`;
