// What was fitted, what is live, and going back.
import { html, useState } from "../vendor/preact.js";
import { call, get, status } from "./api.js";
import { ago, fixed, number, percent, plural, together } from "./format.js";
import { lately } from "./conditions.js";
import { Action, Commands, Failure, Table, useLoad } from "./parts.js";

// Counts, as of sweeps, are whole.
const figure = (value) => (Number.isInteger(value) ? number(value) : fixed(value, 4));
const rate = (feedback) => (feedback?.positive_rate ? `${together(percent(feedback.positive_rate.value, 1))} ${together(`(${percent(feedback.positive_rate.low, 1)} to ${percent(feedback.positive_rate.high, 1)})`)}` : "–");

/** Two generations side by side, by all that is known of both. */
const Compare = ({ pair }) => {
  const [old, fresh] = pair;
  const rows = [
    ["made", ago(old.created), ago(fresh.created)], ["engine", old.engine, fresh.engine], ["link", old.link, fresh.link], ["rank", number(old.rank), number(fresh.rank)],
    ["users", number(old.n_users), number(fresh.n_users)], ["items", number(old.n_items), number(fresh.n_items)], ["ratings", number(old.n_ratings), number(fresh.n_ratings)],
    ["positive rate of its lists", rate(old.feedback), rate(fresh.feedback)], ["items shown at all", percent(old.feedback?.coverage, 1), percent(fresh.feedback?.coverage, 1)],
    ...[...new Set([...Object.keys(old.metrics), ...Object.keys(fresh.metrics)])].map((name) => [name, figure(old.metrics[name]), figure(fresh.metrics[name])]),
  ];
  return html`<h2>${old.generation} beside ${fresh.generation}</h2>
    <${Table} label="two generations compared" columns=${["", { text: String(old.generation), number: true }, { text: String(fresh.generation), number: true }]} rows=${rows} />`;
};

/** Going back is for emergencies: the number is typed, so that a slip of the hand does nothing. */
const Activate = ({ generation, done }) => {
  const [typed, type] = useState("");
  const act = async () => {
    await call("POST", `/generations/${generation}/activate`);
    type("");
    done();
  };
  return html`<span class="activate"><input aria-label=${`type ${generation} to make it live`} placeholder=${`type ${generation}`} size="8" value=${typed} onInput=${(event) => type(event.target.value)} />
    <${Action} role="operate" danger act=${act} disabled=${typed.trim() !== String(generation)}>make live<//></span>`;
};

const PHASES = { archiving: "archiving what was acknowledged", loading: "loading", trial: "trying settings on a part", fitting: "fitting all ratings", ranking: "fitting the ranking head", publishing: "publishing" };

/** Ask for a fit, and follow it. */
const FitNow = ({ done }) => {
  const [said, say] = useState("");
  const act = async () => {
    let answer = await call("POST", "/train?wait=0");
    while (answer.receipt && ["waiting", "running"].includes(answer.state)) {
      say(answer.state === "waiting" ? "waiting for the trainer" : `${PHASES[answer.phase] ?? answer.phase ?? "at work"}${answer.sweep ? `, sweep ${answer.sweep}` : ""}`);
      await new Promise((go) => setTimeout(go, 1000));
      answer = await get(`/train/${answer.receipt}`);
    }
    say("");
    if (answer.state === "failed") throw new Error(`${answer.cause}: ${answer.detail}`);
    done();
  };
  return html`<${Action} role="operate" act=${act}>Fit now<//> <span role="status" class="soft">${said}</span>`;
};

export function generations() {
  // A new generation shows itself.
  const { data, error, again } = useLoad((signal) => get("/generations", { signal }), [status.value?.generation]);
  const failed = lately.value.data?.replicas.find((each) => each.failed);
  const [chosen, choose] = useState([]);
  const toggle = (number) => choose(chosen.includes(number) ? chosen.filter((each) => each !== number) : [...chosen, number].slice(-2));
  const found = data?.generations ?? [];
  const pair = found.filter((each) => chosen.includes(each.generation)).reverse();
  const older = found.some((each) => each.state === "ready" && each.generation > data.live);
  const hold = (generation, wanted) => async () => {
    await call("POST", `/generations/${generation}/activate?hold=${wanted}`);
    again();
  };
  return html`<h1>Generations</h1><${Failure} error=${error} />
    <p><${FitNow} done=${again} /></p>
    ${data?.held && html`<p class="note">Held: ${older ? "an older generation was made live" : "this generation is to stay live"}, so nothing is refitted unasked. ${older ? "Make the newest live, or fit now, to go on." : ""}</p>`}
    ${data?.live > 0 && html`<p><${Action} role="operate" act=${hold(data.live, !data.held)}>${data.held ? "Let refits go on" : `Hold generation ${data.live}`}<//> <span class="soft">${data.held ? "" : "It stays live, whatever is rated, until you let go."}</span></p>`}
    ${failed && html`<p class="note">The last fit did not go live, ${ago(failed.failed_at)}: ${failed.failed}</p>`}
    ${data && html`<${Table} label="generations" empty="No generation yet: the first is made from 100 ratings or other events on."
      columns=${["compare", { text: "generation", number: true }, "made", "model", { text: "users", number: true }, { text: "items", number: true }, { text: "ratings", number: true }, { text: "held-out RMSE", number: true }, "positive rate", ""]}
      keys=${found.map((each) => each.generation)} rows=${found.map((each) => [
        html`<input type="checkbox" aria-label=${`compare ${each.generation}`} checked=${chosen.includes(each.generation)} onChange=${() => toggle(each.generation)} />`,
        html`${each.generation} ${each.live && html`<span class="tag good">live</span>`}`, together(ago(each.created)), `${each.engine}, ${each.link}, rank ${each.rank}`,
        number(each.n_users), number(each.n_items), number(each.n_ratings), fixed(each.metrics.held_out_rmse, 4), rate(each.feedback),
        each.live || each.state !== "ready" ? (each.live ? "" : each.state) : html`<${Activate} generation=${each.generation} done=${again} />`,
      ])} />`}
    ${pair.length === 2 ? html`<${Compare} pair=${pair} />` : found.length > 1 && html`<p class="soft">Choose two to compare them.</p>`}
    <p><${Commands} path="/generations" /></p>`;
}
