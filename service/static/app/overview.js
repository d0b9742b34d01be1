// The first page: how it is, how well ratings that arrive were predicted, and who answers.
import { html } from "../vendor/preact.js";
import { answeredAt, get, status, trouble } from "./api.js";
import { Conditions, conditions, lately } from "./conditions.js";
import { ago, bytes, fixed, number, plural, seconds, when } from "./format.js";
import { Card, Chart, Failure, Table, useLoad } from "./parts.js";
import { Welcome } from "./welcome.js";

const SPANS = { "15 min": 900, "3 h": 10800, "1 day": 86400, "7 days": 604800 };
// Of the longer ones, as the service divides them.
const INTERVALS = 180;

/** How it is, in a sentence. */
const Health = ({ now }) => {
  if (trouble.value) return html`<p id="health" class="bad">The service does not answer: the figures are those of ${when(answeredAt.value)} (UTC). Check that it runs and that this device reaches it; this page asks again every two seconds.</p>`;
  const how = conditions(now, lately.value.data).length ? "Something needs a look" : "All is well";
  if (!now.generation) return html`<p id="health">No generation is live yet: the first is made from 100 ratings or other events on.</p>`;
  const arriving = now.recent_rmse == null ? "no rating has arrived in the last minute" : `ratings of the last minute were predicted with an error of ${fixed(now.recent_rmse, 3)}`;
  return html`<p id="health">${how}: generation ${number(now.generation)} answers, and ${arriving}.</p>`;
};

const Cards = ({ now }) => {
  const live = now.generation > 0;
  return html`<dl class="cards" id="cards">
    <${Card} label="generation" value=${number(now.generation)} note=${live ? `epoch ${now.epoch}, ${ago(now.created)}${now.users ? "" : "; the first fit comes at once from 100 ratings or other events on"}` : "the first is made from 100 ratings or other events on"} />
    <${Card} label="model" value=${now.ratings ? `rank ${now.rank}` : "–"} note=${live ? `${now.engine}, ${now.link}${now.ratings ? "" : "; it has learned nothing yet"}` : ""} />
    <${Card} label="users" value=${number(now.users)} note="in this generation; newer ones are not counted" />
    <${Card} label="items" value=${number(now.items)} note=${`in this generation; ${number(now.known_items)} known`} />
    <${Card} label="ratings" value=${number(now.ratings)} note=${`in this generation; ${number(now.known_events)} events in all`} />
    <${Card} label="ratings arriving" value=${`${number(now.ratings_per_s, 1)} /s`} note=${`${number(now.accepted_ratings)} since the start`} />
    <${Card} label="error of arriving ratings" value=${fixed(now.recent_rmse, 3)} note=${`RMSE of the last minute; ${fixed(now.rmse, 3)} over all`} />
    <${Card} label="predictions" value=${number(now.predictions)} note=${plural(now.requests, "request")} />
    <${Card} label="waiting for the archive" value=${number(now.stream_lag)} note="rating events" />
  </dl>`;
};

/** The points of a history where the live generation changed: to the last one that is known, as after a stop it is the same. */
const changes = ({ at, generation }) =>
  at.flatMap((moment, n) => {
    const [before, now] = [generation.slice(0, n).findLast((each) => each), generation[n]];
    return before && now && now !== before ? [{ at: moment, text: `generation ${now}` }] : [];
  });

const Charts = ({ history }) => {
  const { at: times } = history;
  const line = (label, name, more) => ({ label, values: history[name], ...more });
  return html`<div class="charts">
    <${Chart} title="Error of arriving ratings, each predicted before it was learned" times=${times} marks=${changes(history)}
      lines=${[line("RMSE", "rmse"), line("what an unknown user is told", "baseline_rmse", { dash: [6, 4] })]} format=${(value) => fixed(value, 3)} empty="No rating has arrived in this time." />
    <${Chart} title="Requests a second" times=${times} lines=${[line("requests/s", "requests_per_s"), line("of these 5xx", "failures_per_s")]} format=${(value) => number(value, 1)} />
    <${Chart} title="Time to answer, trainings left out" times=${times} lines=${[line("p50", "p50_s"), line("p99", "p99_s")]} format=${seconds} />
    <${Chart} title="Ratings a second" times=${times} lines=${[line("ratings/s", "ratings_per_s")]} format=${(value) => number(value, 1)} />
    <${Chart} title="Rating events that wait for the archive" times=${times} lines=${[line("events", "lag")]} format=${(value) => number(value)} />
    <${Chart} title="Memory" times=${times} lines=${[line("workers", "workers_bytes"), line("store", "store_bytes"), line("trainer", "trainer_bytes")]} format=${bytes} />
  </div>`;
};

const Replicas = ({ replicas }) => html`<h2>Processes</h2>
  <${Table} label="processes" empty="no process has reported in the last 30 s"
    columns=${["process", "host", { text: "generation", number: true }, { text: "requests/s", number: true }, { text: "in flight", number: true }, { text: "memory", number: true }, "seen"]}
    rows=${replicas.map((each) => [each.process, each.host, number(each.generation), number(each.requests_per_s, 1), number(each.in_flight), bytes(each.resident_bytes), ago(each.at)])} />`;

export function overview({ rest }) {
  const now = status.value;
  const span = Object.hasOwn(SPANS, rest[0]) ? rest[0] : "15 min";
  // As often as there are new points.
  const step_s = Math.max(10, SPANS[span] / INTERVALS);
  const { data, error } = useLoad((signal) => get(`/history?seconds=${SPANS[span]}`, { signal }), [span, Math.floor(Date.now() / 1000 / step_s), now.generation]);
  // Without the store it is not known what it has.
  if (now.store_up && !now.ratings && !now.known_events && !now.accepted_ratings) return html`<${Conditions} /><${Welcome} />`;
  const replicas = lately.value.data?.replicas;
  const first = data?.at[data.requests_per_s.findIndex((each) => each !== null)];
  return html`<h1>Overview</h1><${Health} now=${now} /><${Conditions} /><${Cards} now=${now} />
    <nav class="tabs" aria-label="how far back">${Object.keys(SPANS).map((name) => html`<a href=${`#/overview/${encodeURIComponent(name)}`} aria-current=${name === span ? "true" : undefined}>${name}</a>`)}</nav>
    <${Failure} error=${error} />
    ${first > data?.at[1] && html`<p class="soft">History starts at ${when(first).slice(span === "15 min" || span === "3 h" ? 11 : 0)} UTC.</p>`}
    ${data && html`<${Charts} history=${data} />`}${replicas && html`<${Replicas} replicas=${replicas} />`}`;
}
