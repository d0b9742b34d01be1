// The frame of the dashboard: which page is shown, the sentence of health, the key. Invariant: what is open is
// in the address, so that it can be sent to a colleague and comes back after a reload.
import { html, render, signal, useEffect, useErrorBoundary, useRef } from "../vendor/preact.js";
import { NoAnswer, enter, key, locked, noAddress, scraping, setKey, status, trouble } from "./api.js";
import { conditions, lately, useLately } from "./conditions.js";
import { data } from "./data.js";
import { plural } from "./format.js";
import { generations } from "./generations.js";
import { items } from "./items.js";
import { overview } from "./overview.js";
import { quality } from "./quality.js";
import { system } from "./system.js";
import { users } from "./users.js";

const PAGES = { overview, users, items, quality, generations, data, system };
const decoded = (part) => {
  try {
    return decodeURIComponent(part);
  } catch {
    // A percent sign that someone typed stands for itself.
    return part;
  }
};
const parse = () => {
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { page: Object.hasOwn(PAGES, page) ? page : "overview", rest: rest.map(decoded) };
};
const open = signal(parse());
window.addEventListener("hashchange", () => (open.value = parse()));

/** The one sentence: `[kind, text]`. */
const health = () => {
  if (trouble.value) return locked.value ? ["bad", "a key is needed"] : ["bad", trouble.value instanceof NoAnswer ? "no answer, asking again" : `no answer (${trouble.value.message})`];
  if (scraping.value) return ["bad", "another key is needed"];
  const now = status.value;
  if (!now) return ["soft", "looking…"];
  if (!now.store_up) return ["bad", "the store does not answer"];
  if (now.refusing) return ["bad", `refuses ratings (${now.refusing})`];
  const wrong = conditions(now, lately.value.data).length;
  if (wrong) return ["bad", html`<a class="bad" href="#/system">${plural(wrong, "problem")}</a>`];
  if (!now.generation) return ["soft", "no generation yet"];
  return now.ratings || now.known_events ? ["good", "live"] : ["soft", "nothing learned yet"];
};

const Login = () => {
  const field = useRef(null);
  const enterKey = (event) => {
    event.preventDefault();
    setKey(field.current.value);
    field.current.value = "";
    enter();
  };
  return html`<form class="panel" id="login" onSubmit=${enterKey}>
    <label>${scraping.value
      ? html`This key has the role <code>metrics</code>: it may ask for <code>/metrics</code> and <code>/status</code> alone, so enter another.`
      : "This API asks for a key."} One with the role <code>read</code> shows all pages; <code>operate</code> may change things. It stays in this tab.
      <input ref=${field} id="key" type="password" autocomplete="off" spellcheck=${false} placeholder="fk_…" /></label>
    <button>Sign in</button> <span id="refused" class="bad" role="alert">${trouble.value?.refused ? "This key is not known." : ""}</span>
  </form>`;
};

/** The open page, once the service has said anything; a mistake in one page leaves the others. */
const Page = ({ page, rest }) => {
  const [error, forget] = useErrorBoundary();
  useEffect(forget, [page, rest.join("/")]);
  const why = error ? `This page cannot be shown: ${error.message}.` : noAddress(rest);
  if (why) return html`<p class="bad" role="alert">${why} <a href="#/overview" onClick=${forget}>Overview</a></p>`;
  if (locked.value || scraping.value) return html`<h1>Foldin</h1><${Login} />`;
  if (!status.value) return html`<h1>Foldin</h1><p class="soft">${trouble.value ? `${trouble.value.message} This page goes on by itself when it answers.` : "looking…"}</p>`;
  return html`<${PAGES[page]} rest=${rest} />`;
};

const Frame = () => {
  const { page, rest } = open.value;
  useLately();
  const [kind, sentence] = health();
  const main = useRef(null);
  useEffect(() => {
    document.title = `${page[0].toUpperCase()}${page.slice(1)} – Foldin`;
    // The first page is where a reader begins anyway.
    if (location.hash) main.current?.focus({ preventScroll: true });
  }, [page]);
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), main.current.focus())}>to the content</a>
    <header><a class="brand" href="#/overview"><img src="/static/icon.svg" alt="" width="24" height="24" />Foldin</a>
      <span id="state" role="status" class=${kind}>${sentence}</span>
      <nav aria-label="pages">
        ${Object.keys(PAGES).map((name) => html`<a href=${`#/${name}`} aria-current=${name === page ? "page" : undefined}>${name[0].toUpperCase()}${name.slice(1)}</a>`)}
        <a href="/docs">API</a>
        ${key.value && html`<button type="button" class="quiet" onClick=${() => (setKey(null), enter())}>Forget the key</button>`}
      </nav></header>
    <main id="main" tabindex="-1" ref=${main}><${Page} page=${page} rest=${rest} /></main>`;
};

render(html`<${Frame} />`, document.getElementById("app"));
enter();
