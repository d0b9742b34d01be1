// What is sent again, what never, and what odd answers become: at a server that answers as it is told.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import test from "node:test";

import { Foldin, FoldinError } from "../foldin.js";

const LOST = "lost";
const OK = [200, {}, '{"accepted":1,"generation":1}'];
const RATING = { user_id: "ann", item_id: "dune", rating: 5 };
const VIEW = { user_id: "ann", item_id: "dune", type: "impression" };

function refusal(status, code, headers = {}, more = {}) {
  return [status, headers, JSON.stringify({ status, code, detail: "no", request_id: "r", ...more })];
}

async function scripted(answers, use) {
  const asked = [];
  const server = createServer((request, response) => {
    const parts = [];
    request.on("data", (chunk) => parts.push(chunk));
    request.on("end", () => {
      asked.push({ call: `${request.method} ${request.url}`, headers: request.headers, body: Buffer.concat(parts).toString() });
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      if (answer === LOST) request.socket.destroy();
      else {
        response.writeHead(answer[0], answer[1]);
        response.write(answer[2]);
        if (answer[3] === LOST) setTimeout(() => request.socket.destroy(), 20);
        else response.end();
      }
    });
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  try {
    await use(`http://127.0.0.1:${server.address().port}`, asked);
  } finally {
    server.closeAllConnections();
    await new Promise((closed) => server.close(closed));
  }
}

test("a busy service is asked again when it says, and a lost answer to a rating too", async () => {
  await scripted([refusal(503, "store_unavailable", { "Retry-After": "1" }), LOST, OK], async (url, asked) => {
    const began = performance.now();
    assert.equal((await new Foldin(url, { key: "fk_1" }).rate(RATING)).accepted, 1);
    assert.ok(performance.now() - began >= 1000);
    assert.equal(asked.length, 3);
    assert.equal(asked[2].headers.authorization, "Bearer fk_1");
    assert.equal(asked[2].headers["content-type"], "application/x-ndjson");
  });
});

test("what would count twice is sent once", async () => {
  for (const told of [LOST, refusal(503, "store_unavailable", { "Retry-After": "0" }), [502, {}, "<html>"]]) {
    for (const call of [
      (foldin) => foldin.postEvents(VIEW),
      (foldin) => foldin.train(),
      (foldin) => foldin.addKey({ name: "a", role: "read" }),
      (foldin) => foldin.recommend("ann", { impressions: true }),
      (foldin) => foldin.recommendByRules("ann", { impressions: true }),
    ]) {
      await scripted([told], async (url, asked) => {
        await assert.rejects(call(new Foldin(url)), (error) => error instanceof FoldinError && error.attempts === 1);
        assert.equal(asked.length, 1);
      });
    }
  }
});

test("what was surely not done is sent again, what takes longer than the wait is told at once", async () => {
  await scripted([refusal(503, "overloaded", { "Retry-After": "0" }), OK], async (url, asked) => {
    assert.equal((await new Foldin(url).postEvents(VIEW)).accepted, 1);
    assert.equal(asked.length, 2);
  });
  await scripted([refusal(429, "quota_exceeded", { "Retry-After": "3600" }, { quota: "ratings" })], async (url, asked) => {
    await assert.rejects(new Foldin(url).rate(RATING), { code: "quota_exceeded", retryAfterMs: 3_600_000, more: { quota: "ratings" } });
    assert.equal(asked.length, 1);
  });
});

test("long lists go in calls of ten thousand, and errors count from the beginning", async () => {
  function* rows() {
    for (let number = 0; number < 20_001; number += 1) yield { ...RATING, item_id: number };
  }
  const bad = refusal(422, "invalid_body", {}, { row: 7, field: "rating" });
  await scripted([[200, {}, '{"accepted":10000,"generation":1}'], bad], async (url, asked) => {
    await assert.rejects(new Foldin(url).rate(rows()), { accepted: 10_000, row: 10_007, field: "rating" });
    assert.deepEqual(asked.map(({ body }) => body.trim().split("\n").length), [10_000, 10_000]);
  });
  await scripted([OK], async (url, asked) => {
    const large = Array.from({ length: 5 }, () => ({ item_id: "ü".repeat(1_000_000) }));
    await new Foldin(url).putItems(large);
    assert.deepEqual(asked.map(({ body }) => body.trim().split("\n").length), [3, 2]);
    assert.equal((await new Foldin(url).putItems([])).accepted, 0);
    await assert.rejects(new Foldin(url).rate([RATING, undefined]), { name: "TypeError", message: /^row 1 / });
  });
  function* stopping() {
    yield* Array.from({ length: 10_001 }, () => RATING);
    throw new Error("my disk");
  }
  await scripted([[200, {}, '{"accepted":10000,"generation":1}']], async (url) => {
    await assert.rejects(new Foldin(url).rate(stopping()), { message: "my disk", accepted: 10_000 });
  });
});

test("the user of an address goes along, and shows in no error", async () => {
  await scripted([refusal(401, "unauthorized"), LOST], async (url, asked) => {
    const foldin = new Foldin(url.replace("//", "//me:se%63ret@"), { attempts: 1, timeoutMs: Infinity });
    assert.equal(foldin.url, url);
    for (const status of [401, 0]) {
      await assert.rejects(foldin.predict("ann", "dune"), (error) => error.status === status && !/secret|ann/.test(error.stack));
    }
    assert.equal(asked[0].headers.authorization, `Basic ${btoa("me:secret")}`);
  });
  const ask = async (address) => {
    throw new Error(`cannot reach ${address} now`);
  };
  const lost = new Foldin("http://me:secret@here", { attempts: 1, fetch: ask });
  await assert.rejects(lost.predict("ann", "dune"), { message: /\(cannot reach http:\/\/here\/predict now\)$/ });
  assert.throws(() => new Foldin("http://me:secret@here:port"), { name: "TypeError", message: /^here:port is no address/ });
  for (const timeoutMs of [0, NaN, 2 ** 31]) assert.throws(() => new Foldin("http://here", { timeoutMs }), RangeError);
});

test("an export that breaks off throws after what came; a line may have any letter", async () => {
  await scripted([[200, {}, '{"item_id":"a\u2028b"}\n{"item_id"', LOST]], async (url) => {
    const came = [];
    await assert.rejects(async () => {
      for await (const item of new Foldin(url).exportItems()) came.push(item.item_id);
    }, FoldinError);
    assert.deepEqual(came, ["a\u2028b"]);
  });
});

test("what is no Foldin is told, nothing follows a redirect, and a call has a time", async () => {
  for (const [told, status] of [[[200, {}, "<html>"], 200], [[302, { Location: "http://example.com/" }, ""], 302], [[404, {}, "<html>"], 404]]) {
    await scripted([told], async (url, asked) => {
      await assert.rejects(new Foldin(url).predict("ann", "dune"), { name: "FoldinError", status, code: "" });
      assert.equal(asked.length, 1);
    });
  }
  const silent = createServer(() => {});
  await new Promise((ready) => silent.listen(0, "127.0.0.1", ready));
  const slow = new Foldin(`http://127.0.0.1:${silent.address().port}`, { timeoutMs: 50, attempts: 2 });
  await assert.rejects(slow.predict("ann", "dune"), { isLost: true, attempts: 2, status: 0 });
  silent.closeAllConnections();
  silent.close();
  assert.throws(() => new Foldin("127.0.0.1:8080"), TypeError);
  assert.throws(() => new Foldin("http://here", { key: "a\r\nb" }), TypeError);
  await assert.rejects(async () => slow.getUser(".."), TypeError);
  await assert.rejects(async () => slow.predict("ann"), TypeError);
});
