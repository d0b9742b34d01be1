// How wrong it is, and how well that is known.
import { html } from "../vendor/preact.js";
import { get, status } from "./api.js";
import { fixed, number, percent, together } from "./format.js";
import { Bars, Card, Failure, Table, useLoad } from "./parts.js";

// By the names of `factors/serving/metrics.py` and of the engines.
const OF_RATINGS = [
  ["held_out_rmse", "error (RMSE)", 4], ["baseline_loss", "error of averages of users and items (RMSE)", 4], ["held_out_mae", "mean absolute error", 4],
  ["held_out_log_likelihood", "log likelihood of a rating, nats", 4], ["held_out_coverage", "share within the 90 % interval", 4], ["held_out_count", "ratings asked", 0],
];
const OF_CHOICES = [
  ["loss", "share of the other items placed above a chosen one", 4], ["baseline_loss", "the same, with items placed by popularity", 4], ["held_out_recall_at_20", "share of chosen items among the first 20", 4],
];
const TENTH = /^held_out_coverage_tenth_(\d+)$/;

export function quality() {
  const { data, error } = useLoad((signal) => get("/generations", { signal }), [status.value?.generation]);
  const live = data?.generations.find((each) => each.live);
  if (data && !live) return html`<h1>Quality</h1><p class="soft">No generation yet: the first is made from 100 ratings or other events on, and says here how wrong it is.</p>`;
  const shown = live?.feedback;
  const metrics = live?.metrics ?? {};
  const tenths = Object.entries(metrics).filter(([name]) => TENTH.test(name));
  const told = (live?.engine === "implicit" ? OF_CHOICES : OF_RATINGS).filter(([name]) => name in metrics);
  const rest = Object.entries(metrics).filter(([name]) => !TENTH.test(name) && !told.some(([other]) => other === name));
  return html`<h1>Quality</h1><${Failure} error=${error} />
    ${live && html`
      <h2>By ratings that the fit had not seen</h2>
      <${Table} label="held-out metrics" empty="this generation was made without held-out ratings" columns=${["", { text: "value", number: true }]}
        rows=${told.map(([name, text, digits]) => [text, digits ? fixed(metrics[name], digits) : number(metrics[name])])} />
      ${tenths.length > 0 && html`<h2>Share within the 90 % interval, by tenth of the stated deviation</h2>
        <${Bars} label="calibration" rows=${tenths.map(([name, value]) => ({ label: `${name.match(TENTH)[1]} of 10`, value, text: percent(value, 1) }))} />`}
      ${rest.length > 0 && html`<details><summary>All that the fit told of itself</summary>
        <${Table} label="figures of the fit" columns=${["", { text: "value", number: true }]} rows=${rest.map(([name, value]) => [name, fixed(value, 4)])} /></details>`}
      <h2>By ratings that arrived since the start</h2>
      <dl class="cards"><${Card} label="error, all" value=${fixed(status.value?.rmse, 3)} /><${Card} label="error, last minute" value=${fixed(status.value?.recent_rmse, 3)} /></dl>
      <h2>Results of its lists</h2>
      ${shown ? html`<dl class="cards">
        <${Card} label="lists" value=${number(shown.lists)} /><${Card} label="items shown" value=${number(shown.shown)} />
        <${Card} label="positive rate" value=${percent(shown.positive_rate?.value, 1)} note=${shown.positive_rate ? `${together(`${percent(shown.positive_rate.low, 1)} to ${percent(shown.positive_rate.high, 1)}`)} ${together("(95 %)")}` : "nothing was shown yet"} />
        <${Card} label="of the catalogue shown" value=${percent(shown.coverage, 1)} /></dl>`
        : html`<p class="soft">No lists were asked for with <code>impressions=true</code> yet.</p>`}`}`;
}
