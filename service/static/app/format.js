// Numbers, times and commands as people read them. Invariant: what is not known is a dash, never 0.
import { key, may } from "./api.js";

export const number = (value, digits = 0) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
export const fixed = (value, digits = 2) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits));
/** A figure of no unit, as a score: three digits that count, be it ever so small. */
export const significant = (value) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }));
export const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
/** A text that is not broken into lines. */
export const together = (text) => text.replaceAll(" ", "\u00a0");
export const bytes = (value) =>
  value === null || value === undefined ? "–" : value < 1e9 ? `${number(value / 2 ** 20)} MB` : `${number(value / 2 ** 30, 1)} GB`;
export const seconds = (value) =>
  value === null || value === undefined ? "–" : value < 1 ? `${number(1000 * value, value < 0.01 ? 1 : 0)} ms` : `${number(value, 1)} s`;
export const ago = (moment) => {
  if (!moment) return "–";
  const past = Date.now() / 1000 - moment;
  if (past < 90) return `${number(Math.max(0, past))} s ago`;
  if (past < 5400) return `${number(past / 60)} min ago`;
  return past < 129600 ? `${number(past / 3600, 1)} h ago` : `${number(past / 86400)} days ago`;
};
/** A moment in UTC, of seconds since 1970 or a date in ISO 8601; a dash for what no calendar has. */
export const when = (moment) => {
  const date = new Date(typeof moment === "number" ? moment * 1000 : (moment ?? NaN));
  return Number.isNaN(date.getTime()) ? "–" : date.toISOString().replace("T", " ").replace(/:\d\d\.\d+Z$/, "");
};
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
/** A program of Python that runs as it is. The key is that of a variable: what is copied ends in files and chats. */
export const asPython = (...lines) => {
  const [imports, key] = may.value.keys ? ["import os\n\n", ', key=os.environ["FOLDIN_API_KEY"]'] : ["", ""];
  return `# foldin_client comes with foldin; without foldin: pip install ./clients/python in a checkout\n${imports}from foldin_client import Client\n\nwith Client("${location.origin}"${key}) as foldin:\n${lines.map((line) => `    ${line}\n`).join("")}`;
};
/** The call as a command of the shell: with a key its place is shown, and not the key itself. */
export function asCurl(method, path, body) {
  const parts = ["curl"];
  if (method !== "GET") parts.push(`-X ${method}`);
  if (key.value) parts.push('-H "Authorization: Bearer $FOLDIN_API_KEY"');
  parts.push(quoted(location.origin + path));
  if (body !== undefined) parts.push(`-H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`);
  return parts.join(" ");
}
