// How wrong it is, and how well that is known.
import { html, useState } from "../vendor/preact.js";
import { call, get, id, status } from "./api.js";
import { ago, fixed, number, percent, together } from "./format.js";
import { Action, Bars, Card, Failure, Table, useLoad } from "./parts.js";

// By the names of `factors/serving/metrics.py` and of the engines.
const OF_RATINGS = [
  ["held_out_rmse", "error (RMSE)", 4], ["baseline_loss", "error of averages of users and items (RMSE)", 4], ["held_out_mae", "mean absolute error", 4],
  ["held_out_log_likelihood", "log likelihood of a rating, nats", 4], ["held_out_coverage", "share within the 90 % interval", 4], ["held_out_count", "ratings asked", 0],
];
const OF_CHOICES = [
  ["loss", "share of the other items placed above a chosen one", 4], ["baseline_loss", "the same, with items placed by popularity", 4], ["held_out_recall_at_20", "share of chosen items among the first 20", 4],
];
const TENTH = /^held_out_coverage_tenth_(\d+)$/;

/** The rows of what `foldin evaluate --json` printed: an object a line, of which some tell of a run alone. */
export const rowsOf = (text) => {
  const lines = text.split("\n").filter((line) => line.trim());
  const rows = lines.map((line, at) => {
    try {
      return JSON.parse(line);
    } catch {
      throw new Error(`line ${at + 1} is no JSON: a report is what foldin evaluate FILE --json prints`);
    }
  });
  const found = rows.filter((row) => row && row.engine && row.data);
  if (!found.length) throw new Error("it has no line with an engine and data: a report is what foldin evaluate FILE --json prints");
  return found;
};

const Report = ({ report, done }) => {
  const remove = async () => {
    await call("DELETE", `/reports/${id(report.name)}`);
    done();
  };
  const num = (text) => ({ text, number: true });
  return html`<h3>${report.name} <small class="soft">${ago(report.at)}</small> <${Action} role="operate" danger act=${remove}>remove<//></h3>
    <${Table} label=${`report ${report.name}`} columns=${["engine", "data", "split", num("ratings asked"), num("RMSE"), num("MAE"), num("within 90 %"), num("NDCG@100"), num("seconds"), ""]}
      rows=${report.rows.map((row) => [row.engine, row.data, row.split, number(row.n_test), fixed(row.rmse, 4), fixed(row.mae, 4), percent(row.coverage, 1), fixed(row.ndcg_100, 4), number(row.seconds, 1), row.skipped || row.note])} />`;
};

/** Evaluations that people made elsewhere, of files of theirs. */
const Reports = () => {
  const { data, error, again } = useLoad((signal) => get("/reports", { signal }), []);
  const [chosen, choose] = useState(null);
  const send = async () => {
    const name = chosen.name.replace(/\.[a-z]+$/i, "").replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64) || "report";
    await call("PUT", `/reports/${id(name)}`, { rows: rowsOf(await chosen.text()) });
    again();
  };
  return html`<h2>Evaluations</h2><${Failure} error=${error} />
    <p>What <code>foldin evaluate ratings.csv --json > report.jsonl</code> found, for all who look here.</p>
    <p><label>A report <input type="file" accept=".jsonl,.ndjson,.json" onChange=${(event) => choose(event.target.files[0] ?? null)} /></label> <${Action} role="operate" act=${send} disabled=${!chosen}>Keep it here<//></p>
    ${data?.reports.map((report) => html`<${Report} key=${report.name} report=${report} done=${again} />`)}`;
};

export function quality() {
  const { data, error } = useLoad((signal) => get("/generations", { signal }), [status.value?.generation]);
  const live = data?.generations.find((each) => each.live);
  if (data && !live) return html`<h1>Quality</h1><p class="soft">No generation yet: the first is made from 100 ratings or other events on, and says here how wrong it is.</p><${Reports} />`;
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
        : html`<p class="soft">No lists were asked for with <code>impressions=true</code> yet.</p>`}`}
    <${Reports} />`;
}
