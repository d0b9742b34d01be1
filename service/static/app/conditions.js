// What is wrong now, by what the processes tell of themselves: signs that some alerts of `deploy/prometheus` have,
// too, each with the heading of the manual that says what to do.
import { html, signal } from "../vendor/preact.js";
import { get, locked, scraping, status } from "./api.js";
import { ago, number, percent } from "./format.js";
import { Manual, Table, useLoad } from "./parts.js";

// A minute in intervals of ten seconds: what lasts so long is no passing thing, and by then each has told of itself.
const NEWEST = 6;
// Of all calls; as the alert has it for those of /predict.
const [SLOW_S, SLOW_FOR] = [0.05, 25];
// As the alert of the stream has it.
const MOST_WAITING = 50_000;
// Of the newest intervals so many have failures.
const FAILING_FOR = 3;
// As their alerts have it: calls a second that are turned away, a worker's silence, the age of a backup.
const [TURNED_AWAY_PER_S, SILENT_S, BACKUP_S] = [1, 10, 8 * 86400];
// Ratings are refused from 95 % of the store's memory on.
const NEARLY_FULL = 0.9;

/** What the processes have told lately: `{data, error}`. */
export const lately = signal({ data: null, error: null });
/** Keep `lately`, as often as there is more. */
export const useLately = () => {
  const ready = status.value !== null && !locked.value && !scraping.value;
  const ask = async (signal) => {
    const found = await get("/history?seconds=300", { signal }).then((data) => ({ data, error: null }), (error) => ({ data: null, error }));
    if (!signal.aborted) lately.value = found;
  };
  useLoad((signal) => (ready ? ask(signal) : Promise.resolve()), [ready, Math.floor(Date.now() / 10000), status.value?.generation]);
};

/** `[alert, text]` of each sign. `now`: of /status, `history`: of /history. */
export function conditions(now, history) {
  const found = [];
  if (!now.store_up) found.push(["FoldinStoreDown", "The store does not answer: ratings are refused, and reads come from copies."]);
  if (now.refusing) found.push(["FoldinRefusing", `Ratings are refused, as there is no room: ${now.refusing}.`]);
  for (const each of now.workers) if (each.age_s > SILENT_S) found.push(["FoldinWorkerSilent", `Worker ${each.worker} of this host has said nothing of itself for ${number(each.age_s)} s.`]);
  if (now.backed_up && Date.now() / 1000 - now.backed_up.at > BACKUP_S) found.push(["FoldinBackupOld", `The last backup was made ${ago(now.backed_up.at)}.`]);
  // It lies in the store, too.
  if (!history) return found;
  const trainers = history.replicas.filter((each) => each.process.startsWith("trainer"));
  const workers = history.replicas.filter((each) => each.process.startsWith("worker"));
  const newest = (name, n = NEWEST) => history[name].slice(-n).filter((each) => each !== null);
  const mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;
  if (!trainers.length && newest("requests_per_s").length >= NEWEST - 1) found.push(["FoldinTrainerDown", "No trainer has told of itself in half a minute: nothing is archived or refitted."]);
  if (trainers.length && trainers.every((each) => each.busy === "waits for the lease")) found.push(["FoldinNoLeader", "All trainers wait for the lease: none leads."]);
  for (const each of trainers) if (each.failed) found.push(["FoldinFitFails", `The last fit did not go live, ${ago(each.failed_at)}: ${each.failed}`]);
  // What a trainer finds in itself.
  for (const each of trainers) found.push(...Object.entries(each.wrong));
  for (const each of history.servers) {
    if (each.limit_bytes && each.used_bytes > NEARLY_FULL * each.limit_bytes && !now.refusing) found.push(["FoldinRefusing", `${each.address} has ${percent(each.used_bytes / each.limit_bytes)} of its memory in use: from 95 % on ratings are refused.`]);
    if (!each.answers) found.push(["FoldinSlotsUncovered", `${each.address} of the cluster does not answer for its ${number(each.slots)} slots.`]);
    else if (each.slots && !each.replicas.some((replica) => replica.online)) found.push(["FoldinPrimaryWithoutReplica", `${each.address} of the cluster has no replica.`]);
  }
  const served = new Set(workers.map((each) => each.generation));
  // A new one that is going live passes.
  if (served.size > 1 && newest("generation").length >= NEWEST - 1 && new Set(newest("generation")).size === 1) found.push(["FoldinReplicasDisagree", `Workers serve different generations: ${[...served].sort((a, b) => a - b).join(", ")}.`]);
  const waiting = newest("lag");
  if (waiting.length >= NEWEST - 1 && Math.min(...waiting) > MOST_WAITING) found.push(["FoldinStreamFilling", `${number(waiting.at(-1))} rating events wait for the archive: is the trainer well, and its disk?`]);
  const failures = mean(newest("failures_per_s"));
  const asked = mean(newest("requests_per_s"));
  // A start answers 503 for a moment.
  const failing = newest("failures_per_s").filter((each) => each > 0).length;
  if (failures > 0.01 * asked && failing >= FAILING_FOR) found.push(["FoldinErrors", `${number(failures, 2)} of ${number(asked, 1)} answers a second are 5xx.`]);
  const turnedAway = newest("turned_away_per_s").filter((each) => each > TURNED_AWAY_PER_S);
  if (turnedAway.length >= FAILING_FOR) found.push(["FoldinTurnedAway", `${number(turnedAway.at(-1), 1)} calls a second are turned away with 401, 403 or 429.`]);
  if (history.mistakes_per_s.some((each) => each > 0)) found.push(["FoldinMistakes", "A call ended in an unexpected exception in the last minutes: the log has it under its request id."]);
  const late = newest("p99_s", SLOW_FOR);
  if (late.length === SLOW_FOR && Math.min(...late) > SLOW_S) found.push(["FoldinSlow", `One answer in a hundred takes ${number(1000 * late.at(-1))} ms or more.`]);
  return found;
}

export const Conditions = () => {
  const found = conditions(status.value, lately.value.data);
  if (!found.length) return null;
  return html`<section class="note" aria-label="what is wrong"><ul>
    ${found.map(([alert, text]) => html`<li>${text} <${Manual} page="alerts" heading=${alert}>What to do<//></li>`)}
  </ul></section>`;
};

/** What the processes of all hosts do now. */
export const Tasks = () => html`<${Table} label="tasks" empty="no process has reported in the last 30 s"
  columns=${["process", "host", "at work on", "last fit that did not go live", "seen"]}
  rows=${lately.value.data.replicas.filter((each) => !each.process.startsWith("worker")).map((each) => [each.process, each.host, each.busy || "nothing just now", each.failed ? `${ago(each.failed_at)}: ${each.failed}` : "–", ago(each.at)])} />`;
