import assert from "node:assert/strict";
import { test } from "node:test";

import { JOINED, collect, failure, settle, world } from "./helpers/fakes.mjs";

/** The delays the client chose for `n` failing tries after a first connection. */
async function delays(options, n) {
  const w = world({ connectTimeout: 1e9, ...options });
  const client = await w.connected();
  const seen = [];
  client.lifecycle.on("reconnecting", ({ delay }) => seen.push(delay));
  await w.socket.drop();
  while (seen.length < n) {
    await w.timers.advance(seen.at(-1));
    await w.socket.drop();
  }
  client.close();
  return seen;
}

test("delays are full jitter: between zero and a doubling bound with a cap", async () => {
  assert.deepEqual(await delays({ random: () => 0 }, 3), [0, 0, 0]);
  const bounds = await delays({ random: () => 1 }, 9);
  assert.deepEqual(bounds, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
  assert.deepEqual(await delays({ random: () => 0.5 }, 2), [250, 500]);
  assert.deepEqual(
    await delays({ random: () => 1, backoffBase: 10, backoffCap: 25 }, 3),
    [10, 20, 25],
  );
});

test("only a connection that lasted makes the delays start over", async () => {
  const w = world({ random: () => 1 });
  const client = await w.connected();
  const seen = [];
  client.lifecycle.on("reconnecting", ({ delay, attempt }) => seen.push([delay, attempt]));
  await w.socket.drop();
  await w.comeBack();
  await w.timers.advance(4_999);
  await w.socket.drop();
  await w.comeBack();
  await w.timers.advance(5_000);
  await w.socket.drop();
  assert.deepEqual(seen, [
    [500, 1],
    [1000, 1],
    [500, 1],
  ]);
  client.close();
});

test("maxTries counts from the last connection", async () => {
  const w = world({ maxTries: 2 });
  const client = await w.connected();
  const closes = collect(client.lifecycle, "close");
  await w.socket.drop();
  await w.comeBack();
  await w.socket.drop();
  for (let i = 0; i < 2; i++) {
    await w.timers.advance(1_500);
    await w.socket.drop();
  }
  assert.deepEqual(
    closes.map(({ willReconnect }) => willReconnect),
    [true, true, true, false],
  );
  assert.equal(client.state, "closed");
});

test("the close code decides whether to come back", async () => {
  const yes = [1001, 1005, 1006, 1009, 1011, 1012, 1013, 4500, 4501, 4502, 4503, 4508, 4512, 4999];
  const no = [1000, 1008, 4000, 4401, 4403, 4409, 4410, 4499];
  for (const code of [...yes, ...no]) {
    const w = world();
    const client = await w.connected();
    await w.socket.drop(code, "why");
    assert.deepEqual(client.closeReason, {
      code,
      reason: "why",
      willReconnect: yes.includes(code),
    });
    assert.equal(client.state, yes.includes(code) ? "reconnecting" : "closed");
    client.close();
    assert.equal(w.timers.count, 0);
  }
});

test("a draining server names the delay, within reason", async () => {
  for (const [reason, delay] of [
    ["1234", 1234],
    ["99999999", 300_000],
    ["soon", 250],
    ["-5", 250],
    ["", 250],
  ]) {
    const w = world();
    const client = await w.connected();
    const seen = collect(client.lifecycle, "reconnecting");
    await w.socket.drop(4512, reason);
    assert.equal(seen[0].delay, delay);
    assert.deepEqual(w.timers.delays, [delay]);
    client.close();
  }
});

test("unacknowledged messages are sent again, in order, under the same messageId, after the rejoin", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const answers = [room.send("m", 1), room.send("m", 2), room.send("m", 3)];
  await settle();
  const before = w.socket.fresh();
  await w.socket.receive({ type: "ack", id: before[0].id, data: "first" });
  await w.socket.drop();
  answers.push(room.send("m", 4));
  const socket = await w.comeBack();
  const [join, ...early] = socket.fresh();
  assert.deepEqual([join.type, early], ["join", []]);
  await socket.receive({ ...JOINED, roomId: "r", id: join.id, recovered: true });
  const after = socket.fresh();
  assert.deepEqual(
    after.map(({ data }) => data),
    [2, 3, 4],
  );
  assert.deepEqual(
    after.slice(0, 2).map(({ messageId }) => messageId),
    before.slice(1).map(({ messageId }) => messageId),
  );
  await socket.receive(...after.map(({ id, data }) => ({ type: "ack", id, data })));
  assert.deepEqual(await Promise.all(answers), ["first", 2, 3, 4]);
  await socket.drop();
  assert.deepEqual(
    (await w.comeBack()).fresh().map(({ type }) => type),
    ["join"],
  );
  client.close();
});

test("waiting for a connection does not use up a message's timeout; a connection does", async () => {
  const w = world({ maxTries: 100 });
  const client = await w.connected();
  const promise = failure(client.send("m", 1, { timeout: 2_000 }));
  await settle();
  await w.timers.advance(1_500);
  await w.socket.drop();
  await w.timers.advance(9_000);
  await w.socket.welcome({ resumed: true });
  assert.equal(w.socket.fresh().length, 1);
  await w.timers.advance(1_999);
  let over = false;
  promise.then(() => (over = true));
  await settle();
  assert.equal(over, false);
  await w.timers.advance(1);
  assert.equal((await promise).code, "timeout");
  await w.socket.drop();
  assert.deepEqual((await w.comeBack()).fresh(), []);
  client.close();
});

test("after 1009 the frame that was too large is not sent again", async () => {
  const w = world();
  const client = await w.connected();
  const small = client.send("small", 1);
  const large = failure(client.send("large", "x".repeat(5_000)));
  const other = client.send("small", 2);
  await settle();
  await w.socket.drop(1009, "too large");
  assert.equal((await large).code, "too_large");
  const socket = await w.comeBack();
  const sent = socket.fresh();
  assert.deepEqual(
    sent.map(({ data }) => data),
    [1, 2],
  );
  await socket.receive(...sent.map(({ id }) => ({ type: "ack", id })));
  await Promise.all([small, other]);
  const joining = client.join("r");
  await settle();
  await socket.drop(1009, "too large"); // it was no join
  const third = await w.comeBack();
  await third.receive({ ...JOINED, roomId: "r", id: third.fresh()[0].id });
  assert.equal((await joining).joined, true);
  client.close();
});

test("a handler told of the connection speaks after what waited", async () => {
  const w = world();
  const client = await w.connected();
  await w.socket.drop();
  failure(client.send("m", "waited"));
  client.lifecycle.on("state", (state) => {
    if (state === "connected") failure(client.send("m", "told"));
  });
  const socket = await w.comeBack();
  assert.deepEqual(
    socket.fresh().map(({ data }) => data),
    ["waited", "told"],
  );
  client.close();
});

test("answers ping with pong", async () => {
  const w = world();
  const client = await w.connected();
  await w.socket.receive({ type: "ping" });
  assert.deepEqual(w.socket.sent.at(-1), { type: "pong" });
  client.close();
});

test("silence is asked about after pingInterval and cut after pingTimeout more", async () => {
  const w = world();
  const client = await w.connected({ pingInterval: 1_000, pingTimeout: 400 });
  const pings = () => w.sockets[0].sent.filter(({ type }) => type === "ping").length;
  await w.timers.advance(600);
  await w.socket.receive({ type: "tick", data: 1 });
  await w.timers.advance(999);
  assert.equal(pings(), 0);
  await w.timers.advance(1);
  assert.equal(pings(), 1);
  await w.timers.advance(399);
  await w.socket.receive({ type: "pong", timestamp: 1 });
  await w.timers.advance(999);
  assert.equal(pings(), 1);
  await w.timers.advance(1);
  assert.equal(pings(), 2);
  await w.timers.advance(399);
  assert.equal(client.state, "connected");
  await w.timers.advance(1);
  assert.equal(client.state, "reconnecting");
  assert.deepEqual([client.closeReason.code, client.closeReason.willReconnect], [4508, true]);
  assert.notEqual(w.sockets[0].closedWith, null);
  await w.comeBack();
  assert.equal(client.state, "connected");
  client.close();
});

test("the page's events: online and visible try at once, or make sure of the connection", async () => {
  const page = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  const listening = new Set();
  globalThis.addEventListener = (type, fn) => {
    page.addEventListener(type, fn);
    listening.add(type);
  };
  globalThis.removeEventListener = (type, fn) => {
    page.removeEventListener(type, fn);
    listening.delete(type);
  };
  globalThis.document = document;
  try {
    const w = world({ random: () => 1 });
    const client = await w.connected();
    const pings = () => w.socket.sent.filter(({ type }) => type === "ping").length;
    const fire = async (target, type) => {
      target.dispatchEvent(new Event(type));
      await settle();
    };

    await w.socket.drop();
    await fire(page, "online");
    assert.equal(w.sockets.length, 2);
    await fire(page, "online"); // a try is under way
    assert.equal(w.sockets.length, 2);
    await w.socket.drop();
    document.visibilityState = "hidden";
    await fire(document, "visibilitychange");
    assert.equal(w.sockets.length, 2);
    document.visibilityState = "visible";
    await fire(document, "visibilitychange");
    assert.equal(w.sockets.length, 3);
    await w.socket.welcome({ resumed: true });

    await fire(page, "offline");
    assert.equal(pings(), 1);
    await w.socket.receive({ type: "pong" });
    assert.equal(client.state, "connected");
    await fire(document, "visibilitychange");
    assert.equal(pings(), 2);
    await w.timers.advance(5_000);
    assert.equal(client.state, "reconnecting");

    await fire(page, "online");
    await w.socket.welcome({ resumed: true });
    await w.socket.drop(4512, "60000");
    const count = w.sockets.length;
    await fire(page, "online"); // the server named the moment
    assert.equal(w.sockets.length, count);

    assert.deepEqual([...listening].sort(), ["offline", "online"]);
    client.close();
    assert.equal(listening.size, 0);
    await fire(page, "online");
    await fire(document, "visibilitychange");
    assert.equal(w.sockets.length, count);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
    delete globalThis.document;
  }
});

test("close() while waiting for the next try ends the waiting", async () => {
  const w = world();
  const client = await w.connected();
  await w.socket.drop();
  client.close();
  await w.timers.advance(100_000);
  assert.equal(w.sockets.length, 1);
  assert.equal(client.state, "closed");
});

test("handlers that close the client, or connect it again, are the last word", async () => {
  const w = world();
  const client = await w.connected();
  const told = [];
  for (const type of ["close", "reconnecting", "resumed"]) {
    client.lifecycle.on(type, ({ code, willReconnect }) => told.push([type, code, willReconnect]));
  }
  let close = "reconnecting";
  client.lifecycle.on("state", (state) => state === close && client.close());
  await w.socket.drop();
  assert.deepEqual(told.splice(0), [["close", 1000, false]]);
  assert.equal(w.timers.count, 0);

  close = "";
  const again = client.connect();
  await settle();
  await w.socket.welcome();
  await again;
  await w.socket.drop();
  told.length = 0;
  close = "connected";
  const waiting = failure(client.connect());
  await w.comeBack();
  assert.equal((await waiting).code, "closed");
  assert.deepEqual(told.splice(0), [["close", 1000, false]]);

  close = "";
  const third = client.connect();
  await settle();
  await w.socket.welcome();
  await third;
  const room = await w.joined(client);
  let back;
  const states = [];
  client.lifecycle.on("state", (state) => states.push(state));
  room.lifecycle.on("left", () => (back = client.connect()));
  await w.socket.drop(4403);
  await w.socket.welcome();
  await back;
  assert.deepEqual(states, ["connecting", "connected"]);
  client.close();
});
