// Every call of the description is made once at the real service at FOLDIN_URL, which the test of it starts.

import assert from "node:assert/strict";
import test from "node:test";

import { Foldin, FoldinError } from "../foldin.js";
import { OPERATIONS } from "../operations.js";

const url = process.env.FOLDIN_URL;

async function all(rows) {
  const found = [];
  for await (const row of rows) found.push(row);
  return found;
}

// A worker that had no turn for seconds refuses calls, and some the client rightly sends only once.
async function patient(address, request) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(address, request);
    if (response.status !== 503 || attempt === 20) return response;
    if ((await response.clone().json()).code !== "store_unavailable") return response;
    await new Promise((go) => setTimeout(go, 100));
  }
}

async function trained(foldin, receipt) {
  for (let turn = 0; turn < 600; turn += 1) {
    const training = await foldin.getTraining(receipt);
    if (training.state === "done") return;
    assert.notEqual(training.state, "failed", `${training.cause}: ${training.detail}`);
    await new Promise((go) => setTimeout(go, 50));
  }
  assert.fail("a training has not ended after 30 s");
}

function refused(code) {
  return (error) => error instanceof FoldinError && error.code === code && error.requestId !== "";
}

test("every call of the description", async () => {
  const made = new Set();
  const known = Object.entries(OPERATIONS).map(([name, { method, path }]) => ({
    name,
    method,
    pattern: new RegExp(`^${path.replace(/\{\w+\}/g, "[^/]+")}$`),
    open: path.split("{").length,
  }));
  const note = (address, request) => {
    const { pathname } = new URL(address);
    const fits = known.filter((each) => each.method === request.method && each.pattern.test(pathname));
    made.add(fits.sort((one, other) => one.open - other.open)[0].name);
    return patient(address, request);
  };
  const foldin = new Foldin(url, { fetch: note });

  const odd = "a/b?c#d%2Fü\u2028";
  assert.equal((await foldin.rate([{ user_id: "ann", item_id: odd, rating: 4 }, { user_id: "eve", item_id: 7, rating: 2 }])).accepted, 2);
  assert.ok((await all(foldin.exportRatings())).some((rating) => rating.item_id === odd && rating.rating === 4));
  assert.equal((await foldin.predict("ann", "dune", { timestamp: 1.7e9, context: {} })).basis, "user+item");
  const many = await foldin.predictMany({ user_id: "ann", item_ids: ["dune", 7] });
  assert.equal("predictions" in many && many.predictions.length, 2);
  assert.equal((await foldin.unrate("ann", odd)).deleted, 1);
  await assert.rejects(foldin.unrate("ann", odd), refused("unknown_rating"));
  assert.equal((await foldin.postEvents({ user_id: "ann", item_id: "dune", type: "view" })).accepted, 1);
  assert.equal((await foldin.getUserEvents("ann", { n: 5 })).events[0].type, "view");
  assert.equal((await foldin.deleteEvent("ann", "dune", "view")).deleted, 1);
  const { types } = await foldin.getEventTypes();
  assert.equal((await foldin.putEventTypes({ types: types.map(({ name, meaning }) => ({ name, meaning })) })).types.length, types.length);
  assert.ok((await foldin.retireEventType("click")).types[1].retired);

  assert.equal((await foldin.recommend("ann", { n: 2, include: ["title", "reasons"], exclude_seen: false, impressions: true })).items.length, 2);
  assert.equal((await foldin.recommendByRules("ann", { n: 1, exclude_items: ["emma"] })).items.length, 1);
  assert.equal((await foldin.recommendAnonymous({ ratings: [{ item_id: "nothing", rating: 1 }] })).ignored, 1);
  assert.equal((await foldin.similar("dune", { n: 1 })).item_id, "dune");
  assert.equal((await foldin.similarByRules("dune", { by: "content", n: 1 })).item_id, "dune");
  for (const name of ["popular", "trending", "latest"]) {
    assert.equal((await foldin[name]({ n: 1 })).generation, 1);
    assert.ok((await foldin[`${name}ByRules`]({ user_id: "ann" })).recommendation_id);
  }
  assert.equal((await foldin.explain("ann", "emma")).parts[0].item_id, "dune");

  await foldin.putSchema({ items: { year: "text" }, users: { age: "text" } });
  assert.deepEqual((await foldin.deleteItemAttribute("year")).items, {});
  assert.deepEqual((await foldin.deleteUserAttribute("age")).users, {});
  await foldin.putSchema({ items: { year: "number" }, context: { device: { kind: "category" } } });
  assert.deepEqual((await foldin.putItem("bare")).item_id, "bare");
  assert.deepEqual((await foldin.putItem("dune", { attributes: { year: 1965 } })).attributes, { year: 1965 });
  assert.equal((await foldin.patchItem("dune", { hidden: false })).item_id, "dune");
  assert.equal((await foldin.putItems([{ item_id: "emma" }])).accepted, 1);
  assert.equal((await foldin.listItems({ n: 10 })).total, 3);
  assert.equal((await foldin.putItems(foldin.exportItems())).accepted, 3);
  assert.equal((await foldin.getItem("dune")).item_id, "dune");
  assert.equal((await foldin.deleteItem("bare")).deleted, 1);
  assert.equal((await foldin.getSchema()).items.year, "number");
  await foldin.rate({ user_id: "ann", item_id: "dune", rating: 5, context: { device: "tv" } });
  assert.equal((await foldin.deleteContextField("device")).context.device, undefined);

  assert.equal((await foldin.putScenario("home", { per_category: 3 })).per_category, 3);
  await foldin.putScenario("late", { per_category: 2 });
  assert.equal((await foldin.getScenario("home")).name, "home");
  assert.deepEqual((await foldin.getScenarios()).scenarios, ["home", "late"]);
  const arms = ["home", "late"].map((name) => ({ name, share: 0.5, scenario: name }));
  assert.equal((await foldin.putExperiment("which", { arms, scenario: "home" })).name, "which");
  assert.equal((await foldin.getExperiments()).experiments.length, 1);
  assert.equal((await foldin.getExperiment("which")).arms.length, 2);
  assert.equal((await foldin.deleteExperiment("which", { keep: "home" })).ended, "which");
  assert.equal((await foldin.deleteScenario("late")).deleted, 1);

  // A page may be empty though more follow: of a store that others use, too, it looks through a part.
  let page = await foldin.findUsers({ prefix: "an" });
  const found = [...page.users];
  for (; page.next; found.push(...page.users)) page = await foldin.findUsers({ prefix: "an", cursor: page.next });
  assert.ok(found.includes("ann") && found.every((each) => each === "ann"));
  assert.equal((await foldin.getUser("ann")).ratings, 1);
  assert.equal((await foldin.getUserRatings("ann")).total, 1);
  assert.equal((await foldin.neighbours("ann")).user_id, "ann");
  assert.equal((await foldin.putUsers({ user_id: "ann", attributes: { age: 30 } })).accepted, 1);
  assert.deepEqual((await foldin.putAttributes("ann", { age: 31 })).attributes, { age: 31 });
  assert.equal((await foldin.patchAttributes("ann", { country: "fr" })).attributes.country, "fr");
  assert.equal((await foldin.getAttributes("ann")).user_id, "ann");
  assert.equal((await foldin.listAttributes({ n: 5 })).users[0].user_id, "ann");
  assert.equal((await foldin.putUsers(foldin.exportUsers())).accepted, 1);
  assert.equal((await foldin.deleteAttributes("ann")).deleted, 1);
  const { receipt } = await foldin.forgetUser("eve");
  assert.equal((await foldin.getReceipt(receipt)).receipt, receipt);
  await assert.rejects(foldin.getUser("eve"), refused("unknown_user"));

  assert.equal((await foldin.decideScale({ low: 1, high: 5 })).high, 5);
  for (const name of ["livez", "readyz", "access", "settings", "status", "history", "describe"]) {
    const told = await foldin[name]();
    assert.ok(told && typeof told === "object", name);
  }
  assert.ok((await foldin.pageFile("style.css")).length > 100);
  assert.ok((await foldin.pageFolderFile("app", "main.js")).length > 100);
  // Where it was built the one leads to the other; else both say how it is.
  const first = await foldin.manualPage("index.html");
  assert.match(first, /Foldin/);
  for (const name of ["metrics", "page", "docsPage"]) assert.ok((await foldin[name]()).length > 100);
  const told = await foldin.manual().catch((error) => error);
  if (told instanceof FoldinError) assert.equal(told.status, 308);
  else assert.equal(told, first);

  const history = { nb_users: 2, nb_items: 3, user_history: [0, 0, 1], item_history: [0, 2, 1], rating_history: [5, 1, 4] };
  await assert.rejects(foldin.train(history), (error) => error.code === "ratings_would_be_lost" && error.more.ratings >= 1);
  assert.equal((await foldin.train({ ...history, replace: true })).generation, 2);
  const asked = await foldin.train({ wait: 0 });
  await trained(foldin, "receipt" in asked && asked.receipt);
  assert.equal((await foldin.getGenerations()).live, 3);
  assert.equal((await foldin.activate(2)).held, true);

  const { key } = await foldin.addKey({ name: "shop", role: "operate" });
  const keyed = new Foldin(url, { key, fetch: note });
  assert.equal((await keyed.getKeys()).keys[0].name, "shop");
  assert.equal((await keyed.removeKey("shop")).removed, 1);

  assert.deepEqual(Object.keys(OPERATIONS).filter((name) => !made.has(name)), []);
});
