import assert from "node:assert/strict";
import { test } from "node:test";

import { collect, reported, settle, world } from "./helpers/fakes.mjs";

const letter = (offset, more = {}) => ({
  id: `m${offset}`,
  fromUserId: "bob",
  toUserId: "ann",
  content: `text ${offset}`,
  offset,
  ...more,
});
const live = (offset) => ({ type: "private-message", data: letter(offset) });
const pending = (offsets, more = false) => ({
  type: "pending-messages",
  data: { messages: offsets.map((offset) => letter(offset)), more },
});
const ofType = (socket, type) => socket.fresh().filter((message) => message.type === type);

/** Answers the acknowledgements that came since; gives what they said. */
async function acknowledged(socket) {
  const asked = ofType(socket, "ack-messages");
  for (const { id, data } of asked) await socket.receive({ type: "ack", id, data });
  return asked.map(({ data }) => data.upTo);
}

/** Runs `fn` on a page whose localStorage is this one. */
async function onPage(storage, fn) {
  const names = ["document", "localStorage"];
  const before = names.map((name) => Object.getOwnPropertyDescriptor(globalThis, name));
  globalThis.document = { addEventListener() {}, removeEventListener() {} };
  Object.defineProperty(globalThis, "localStorage", { configurable: true, get: storage });
  try {
    return await fn();
  } finally {
    names.forEach((name, i) => {
      delete globalThis[name];
      if (before[i]) Object.defineProperty(globalThis, name, before[i]);
    });
  }
}

async function deviceOf(options) {
  const w = world(options);
  const client = await w.connected();
  const { deviceId } = w.socket.sent[0].data;
  client.close();
  return deviceId;
}

test("a device has the name it is given, on each of its connections", async () => {
  const w = world({ deviceId: "phone" });
  const client = await w.connected();
  await w.socket.drop();
  const second = await w.comeBack();
  assert.deepEqual(
    w.sockets.map(({ sent }) => sent[0].data.deviceId),
    ["phone", "phone"],
  );
  assert.equal(second.sent[0].data.resume, "token-1");
  client.close();
  for (const deviceId of ["", 7]) assert.throws(() => world({ deviceId }).create(), TypeError);
});

test("without one, a page keeps a random name, and whoever keeps nothing has a new one", async () => {
  const kept = new Map();
  const storage = {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, value),
  };
  const unnamed = () => deviceOf({ deviceId: undefined });
  await onPage(
    () => storage,
    async () => {
      const first = await unnamed();
      assert.ok(first.length >= 32);
      assert.equal(await unnamed(), first);
      // What is no name is replaced.
      for (const key of kept.keys()) kept.set(key, "x".repeat(1_000));
      assert.notEqual((await unnamed()).length, 1_000);
    },
  );
  const forbidden = () => {
    throw new Error("SecurityError");
  };
  for (const without of [forbidden, () => undefined]) {
    await onPage(without, async () => assert.notEqual(await unnamed(), await unnamed()));
  }
  assert.notEqual(await unnamed(), await unnamed());
});

test("the inbox takes each message once, in order, and says how far it is", async () => {
  const w = world();
  const client = w.create();
  const seen = [];
  client.inbox(({ content }) => void seen.push(content));
  const raw = collect(client, "private-message");
  client.connect();
  await settle();
  await w.socket.welcome();
  await w.socket.receive(pending([1, 2]));
  await w.socket.receive(live(3), live(4));
  assert.deepEqual(seen, ["text 1", "text 2", "text 3", "text 4"]);
  assert.deepEqual(await acknowledged(w.socket), [2]);
  // One question at a time: what came meanwhile follows in one.
  assert.deepEqual(await acknowledged(w.socket), [4]);
  await w.socket.receive(live(4));
  assert.equal(seen.length, 4);
  assert.deepEqual(
    raw.map(({ offset }) => offset),
    [3, 4, 4],
  );
  assert.deepEqual(await acknowledged(w.socket), []);
  client.close();
});

test("a page with more to come is acknowledged by itself, whatever is new meanwhile", async () => {
  const w = world();
  const client = w.create();
  const seen = [];
  client.inbox(({ offset }) => void seen.push(offset));
  client.connect();
  await settle();
  await w.socket.welcome();
  await w.socket.receive(pending([1, 2], true), live(9));
  // 9 would acknowledge 3 and 4 as well, which are not here yet.
  assert.deepEqual(await acknowledged(w.socket), [2]);
  await w.socket.receive(live(10));
  assert.deepEqual(await acknowledged(w.socket), []);
  await w.socket.receive(pending([3, 4]));
  assert.deepEqual(await acknowledged(w.socket), [10]);
  assert.deepEqual(seen, [1, 2, 9, 10, 3, 4]);
  client.close();
});

test("what a handler failed at is not acknowledged, and is handled when it comes again", async () => {
  const w = world();
  const client = w.create();
  const seen = [];
  let broken = true;
  client.inbox(async ({ offset }) => {
    if (offset === 2 && broken) throw new Error("the disk is full");
    seen.push(offset);
  });
  client.connect();
  await settle();
  await w.socket.welcome();
  const errors = await reported(() => w.socket.receive(pending([1, 2, 3])));
  assert.equal(errors.length, 1);
  assert.deepEqual(seen, [1, 3]);
  assert.deepEqual(await acknowledged(w.socket), [1]);
  await w.socket.receive(live(4));
  assert.deepEqual(await acknowledged(w.socket), []);

  broken = false;
  await w.socket.drop();
  const second = await w.comeBack();
  await second.receive(pending([2, 3, 4]));
  assert.deepEqual(seen, [1, 3, 4, 2]);
  assert.deepEqual(await acknowledged(second), [2]);
  assert.deepEqual(await acknowledged(second), [4]);
  client.close();
});

test("handlers that take their time run one after the other", async () => {
  const w = world();
  const client = w.create();
  const waiting = [];
  client.inbox((message) => new Promise((done) => waiting.push({ message, done })));
  client.connect();
  await settle();
  await w.socket.welcome();
  await w.socket.receive(live(1), live(2));
  assert.deepEqual([waiting.length, await acknowledged(w.socket)], [1, []]);
  waiting[0].done();
  await settle();
  assert.deepEqual([waiting.length, await acknowledged(w.socket)], [2, [1]]);
  // Its connection is gone before it is done: nothing is said of it on the next one.
  await w.socket.drop();
  const second = await w.comeBack();
  waiting[1].done();
  await settle();
  assert.deepEqual(await acknowledged(second), []);
  await second.receive(pending([2]));
  assert.deepEqual([waiting.length, await acknowledged(second)], [2, [2]]);
  client.close();
});

test("who awaits connect() misses nothing, and later only what comes later is handled", async () => {
  const w = world();
  const connecting = w.connect();
  await settle();
  await w.socket.open();
  w.socket.onmessage({
    data: [{ type: "connected", sessionId: "s", userId: "ann" }, pending([1])]
      .map((message) => JSON.stringify(message))
      .join("\n"),
  });
  const client = await connecting;
  const seen = [];
  const stop = client.inbox(({ offset }) => void seen.push(offset));
  assert.throws(() => client.inbox(() => {}), TypeError);
  assert.deepEqual(seen, [1]);
  stop();
  await w.socket.receive(live(2));
  await w.timers.advance(0);
  client.inbox(({ offset }) => void seen.push(offset));
  await w.socket.receive(live(3));
  assert.deepEqual(seen, [1, 3]);
  client.close();
});

test("an acknowledgement that was refused for now is tried again", async () => {
  const w = world();
  const client = w.create();
  client.inbox(() => {});
  client.connect();
  await settle();
  await w.socket.welcome();
  await w.socket.receive(live(1));
  const [{ id }] = ofType(w.socket, "ack-messages");
  await w.socket.receive({ type: "error", id, code: "unavailable", error: "busy", retry: true });
  assert.deepEqual(await acknowledged(w.socket), []);
  await w.timers.advance(1_000);
  assert.deepEqual(await acknowledged(w.socket), [1]);
  await w.socket.receive(live(2));
  const [again] = ofType(w.socket, "ack-messages");
  await w.socket.receive({ type: "error", id: again.id, code: "unavailable", error: "busy", retry: true });
  client.close();
  assert.equal(w.timers.count, 0); // a timer would keep Node alive
});

test("what is no message is passed over", async () => {
  const w = world();
  const client = w.create();
  const seen = [];
  client.inbox(({ offset }) => void seen.push(offset));
  client.connect();
  await settle();
  await w.socket.welcome();
  for (const data of [null, 7, {}, { messages: 7 }, { messages: [null, { id: "x" }] }]) {
    await w.socket.receive({ type: "pending-messages", data }, { type: "private-message", data });
  }
  assert.deepEqual([seen, await acknowledged(w.socket)], [[], []]);
  client.close();
});

test("watched users are told of, and asked for again on each connection", async () => {
  const w = world();
  const client = w.create();
  const seen = [];
  const show = (who) => (one) => void seen.push(`${who}: ${one.userId} ${one.status}`);
  const stop = client.watch(["bob", "cy"], show("a"));
  client.connect();
  await settle();
  await w.socket.welcome();
  const [asked] = ofType(w.socket, "watch-presence");
  assert.deepEqual(asked.data, { userIds: ["bob", "cy"] });
  const users = [
    { userId: "bob", status: "online" },
    { userId: "cy", status: "offline" },
  ];
  await w.socket.receive({ type: "ack", id: asked.id, data: { users } });
  const update = (userId, status) => ({ type: "presence-update", data: { userId, status } });
  await w.socket.receive(update("bob", "away"), update("dora", "online"));
  assert.deepEqual(seen.splice(0), ["a: bob online", "a: cy offline", "a: bob away"]);

  const stopOther = client.watch(["bob"], show("b"));
  await settle();
  const [again] = ofType(w.socket, "watch-presence");
  assert.deepEqual(again.data, { userIds: ["bob"] });
  await w.socket.receive({ type: "ack", id: again.id, data: { users: [] } });
  await w.socket.drop();
  const second = await w.comeBack({ resumed: false });
  assert.deepEqual(ofType(second, "watch-presence")[0].data, { userIds: ["bob", "cy"] });

  // Somebody else still watches bob.
  stop();
  stop();
  await settle();
  assert.deepEqual(
    ofType(second, "unwatch-presence").map(({ data }) => data.userIds),
    [["cy"]],
  );
  await second.receive(update("bob", "busy"), update("cy", "online"));
  assert.deepEqual(seen, ["b: bob busy"]);
  stopOther();
  client.close();
});

test("many are watched by the hundred, and a refusal is told", async () => {
  const w = world();
  const client = await w.connected();
  const errors = collect(client.lifecycle, "error");
  client.watch(
    Array.from({ length: 150 }, (_, i) => `user ${i}`),
    () => {},
  );
  await settle();
  const asked = ofType(w.socket, "watch-presence");
  assert.deepEqual(
    asked.map(({ data }) => data.userIds.length),
    [100, 50],
  );
  await w.socket.receive({ type: "error", id: asked[1].id, code: "limit_exceeded", error: "no" });
  assert.deepEqual(
    errors.map(({ code }) => code),
    ["limit_exceeded"],
  );
  client.close();
});
