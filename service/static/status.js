"use strict";
// Shows /status every two seconds. Text only ever becomes text: nothing from the service is read as HTML.
// A key that is typed in stays in this tab and is sent to this service alone; sessionStorage ends with the tab.
const login = document.getElementById("login");
const ask = (path) => {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  return fetch(path, { headers, signal: AbortSignal.timeout(5000) });
};
const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
const ago = (seconds) =>
  seconds < 90 ? `${number(seconds)} s ago` : seconds < 5400 ? `${number(seconds / 60)} min ago` : `${number(seconds / 3600, 1)} h ago`;
const add = (parent, tag, text, kind) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
};
const clear = (id) => {
  const element = document.getElementById(id);
  element.replaceChildren();
  return element;
};

function show(status) {
  const state = document.getElementById("state");
  const live = status.generation > 0;
  state.textContent = !status.store_up ? "the store does not answer" : live ? "live" : "no generation yet";
  state.className = status.store_up && live ? "good" : "bad";
  const cards = clear("cards");
  const rows = [
    ["generation", number(status.generation), live ? `epoch ${status.epoch}, ${ago(Date.now() / 1000 - status.created)}` : ""],
    ["model", live ? `rank ${status.rank}` : "–", live ? `${status.engine}, ${status.link}` : ""],
    ["users", number(status.users), "in this generation"],
    ["items", number(status.items), "in this generation"],
    ["ratings", number(status.ratings), "in this generation"],
    ["ratings arriving", `${number(status.ratings_per_s, 1)} /s`, `${number(status.accepted_ratings)} since the start`],
    ["error of arriving ratings", number(status.recent_rmse, 3), `RMSE of the last minute; ${number(status.rmse, 3)} over all`],
    ["predictions", number(status.predictions), `${number(status.requests)} requests`],
    ["waiting for the archive", number(status.stream_lag), "rating events"],
  ];
  for (const [name, value, note] of rows) {
    const card = add(cards, "div", undefined, "card");
    add(card, "dt", name);
    const shown = add(card, "dd", value);
    add(shown, "small", note);
  }
  const workers = clear("workers");
  for (const each of status.workers) {
    const row = add(workers, "tr");
    const memory = `${number(each.resident_bytes / 1048576)} MB`;
    for (const text of [each.worker, each.epoch, each.generation, each.in_flight, memory]) add(row, "td", String(text));
  }
  const metrics = clear("metrics");
  for (const [name, value] of Object.entries(status.metrics)) {
    const row = add(metrics, "tr");
    add(row, "th", name);
    add(row, "td", number(value, 4));
  }
  if (!metrics.childElementCount) add(add(metrics, "tr"), "td", "none yet", "soft");
}

let next;
async function look() {
  clearTimeout(next);
  try {
    const answer = await ask("/status");
    login.hidden = answer.status !== 401;
    if (answer.status === 401) {
      const refused = sessionStorage.getItem("key") !== null;
      sessionStorage.removeItem("key");
      document.getElementById("refused").textContent = refused ? "This key is not known." : "";
      document.getElementById("state").textContent = "a key is needed";
      return; // Until there is one, asking again would only be refused again.
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    const state = document.getElementById("state");
    state.textContent = `no answer (${error.message})`;
    state.className = "bad";
  }
  next = setTimeout(look, 2000);
}

login.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("key");
  // Anything else than these could not be sent in a header.
  const key = field.value.replace(/[^\x21-\x7e]/g, "");
  field.value = "";
  if (key) sessionStorage.setItem("key", key);
  showCommands();
  look();
});

// A link cannot carry a key: what it leads to is shown here.
for (const link of document.querySelectorAll("nav a[data-keyed]")) {
  link.addEventListener("click", async (event) => {
    if (!sessionStorage.getItem("key")) return;
    event.preventDefault();
    const path = link.getAttribute("href");
    document.getElementById("answer").hidden = false;
    document.getElementById("asked").textContent = path;
    const shown = document.getElementById("shown");
    try {
      const text = await (await ask(path)).text();
      shown.textContent = path === "/metrics" ? text : JSON.stringify(JSON.parse(text), null, 2);
    } catch (error) {
      shown.textContent = `no answer (${error.message})`;
    }
  });
}

// With a key its place in a command is shown, and not the key itself.
function showCommands() {
  const curl = sessionStorage.getItem("key") ? 'curl -H "Authorization: Bearer $KEY"' : "curl";
  document.getElementById("ask").textContent = [
    `${curl} '${location.origin}/predict?user_id=ann&item_id=dune'`,
    `${curl} '${location.origin}/ratings' -H 'Content-Type: application/json' -d '{"user_id": "ann", "item_id": "dune", "rating": 5}'`,
    `${curl} '${location.origin}/recommend/ann?n=5'`,
  ].join("\n");
}
showCommands();
look();
