// The settings, the keys with their roles, and the processes.
import { html, useState } from "../vendor/preact.js";
import { allowed, call, get, id, may, setKey, status } from "./api.js";
import { Conditions, Tasks, lately } from "./conditions.js";
import { bytes, number, when } from "./format.js";
import { Action, Commands, Failure, Field, Manual, Table, useLoad } from "./parts.js";

const Keys = () => {
  const { data, error, again } = useLoad((signal) => get("/keys", { signal }), []);
  const [name, type] = useState("");
  const [chosen, choose] = useState(null);
  const [made, show] = useState(null);
  // The service takes no other one first.
  const role = chosen ?? (data?.keys.some((each) => each.role === "operate") ? "read" : "operate");
  const make = async () => {
    const first = !may.value.keys;
    const answer = await call("POST", "/keys", { name, role });
    show(answer);
    type("");
    // From now on calls without a key are refused: this tab goes on with that one.
    if (first) {
      setKey(answer.key);
      may.value = { role: answer.role, keys: true };
    }
    again();
  };
  const remove = (which) => async () => {
    if (!window.confirm(`Remove ${which}? What sends this key is refused within two seconds.${data.keys.length === 1 ? " It is the last one: every call is refused until `foldin keys add` has made another." : ""}`)) return;
    await call("DELETE", `/keys/${id(which)}`);
    again();
  };
  return html`<h2>Keys</h2><${Failure} error=${error} />
    ${data && html`<${Table} label="keys" empty="no key: calls need none, and only this machine can reach the service" columns=${["name", "role", "made (UTC)", ""]}
      keys=${data.keys.map((each) => each.name)} rows=${data.keys.map((each) => [each.name, each.role, when(each.created), html`<${Action} role="operate" danger act=${remove(each.name)}>remove<//>`])} />
      <div class="search"><${Field} label="Name"><input id="key-name" value=${name} autocomplete="off" onInput=${(event) => type(event.target.value)} /><//>
        <${Field} label="Role"><select id="key-role" value=${role} onChange=${(event) => choose(event.target.value)}>${["metrics", "read", "rate", "operate"].map((each) => html`<option selected=${each === role}>${each}</option>`)}</select><//>
        <${Action} role="operate" act=${make} disabled=${!name}>Make a key<//></div>
      ${!may.value.keys && html`<p class="note">From the first key on every call needs one: make one with the role operate first, and keep it.</p>`}
      ${made && html`<p class="note" role="status">The key of ${made.name}, shown this once: <code>${made.key}</code></p>`}`}`;
};

const Settings = () => {
  const { data, error } = useLoad((signal) => get("/settings", { signal }), []);
  return html`<h2>Settings of the service</h2><${Failure} error=${error} />
    ${data && html`<${Table} label="settings" columns=${["name", "value", "if nothing is set", "what it does"]} rows=${data.settings.map((each) => [html`<code>${each.name}</code>`, each.value, each.default.replaceAll("`", ""), each.help.replaceAll("`", "")])} />`}`;
};

const Servers = ({ servers }) => {
  const used = servers.filter((each) => each.answers).map((each) => each.used_bytes);
  const mean = used.reduce((total, each) => total + each, 0) / used.length;
  const replica = (each) => `${each.address}: ${each.online ? "" : "not in step, "}${bytes(each.behind_bytes)} behind`;
  return html`<h2>Servers of the store</h2>
    <${Table} label="servers" columns=${["server", { text: "slots", number: true }, { text: "memory", number: true }, { text: "limit", number: true }, "replicas"]}
      keys=${servers.map((each) => each.address)} rows=${servers.map((each) => [each.address, each.slots ? number(each.slots) : "–", each.answers ? bytes(each.used_bytes) : "does not answer", each.limit_bytes ? bytes(each.limit_bytes) : "none", each.replicas.map(replica).join("; ") || "none"])} />
    ${used.length > 1 && html`<p class="note">The fullest has ${number(Math.max(...used) / mean, 2)} times the mean.</p>`}`;
};

export function system() {
  const now = status.value;
  const { data, error } = lately.value;
  return html`<h1>System</h1><${Failure} error=${error} />
    <${Conditions} />
    <p class="soft">Problems that processes report themselves are listed here; the other <${Manual} page="alerts">alerts<//> (a process that was restarted, a replica that is silent) need Prometheus.</p>
    ${data && html`<h2>Tasks</h2><${Tasks} />`}
    <p>${may.value.keys ? html`This API asks for keys; yours has the role <strong>${may.value.role}</strong>.` : "This API asks for no key: only this machine can reach it."}</p>
    <h2>Workers of this host</h2>
    ${now && html`<${Table} label="workers" columns=${["worker", { text: "epoch", number: true }, { text: "generation", number: true }, { text: "in flight", number: true }, { text: "memory", number: true }]}
      rows=${now.workers.map((each) => [String(each.worker), number(each.epoch), number(each.generation), number(each.in_flight), bytes(each.resident_bytes)])} />`}
    ${data?.servers?.length > 0 && html`<${Servers} servers=${data.servers} />`}
    ${allowed("operate") ? html`<${Keys} /><${Settings} />` : html`<p class="soft">Keys and settings are shown to a key with the role operate.</p>`}
    <h2>For machines</h2><p><a href="/docs">API</a>, <a href="/openapi.json">its description</a>; Prometheus asks <code>/metrics</code>. <${Commands} path="/metrics" /></p>`;
}
