import assert from "node:assert/strict";
import { test } from "node:test";

import { RealtimeError } from "../../starlette_realtime/static/client.js";
import { CONNECTED, collect, failure, reported, settle, world } from "./helpers/fakes.mjs";

test("says hello first and resolves on connected", async () => {
  const w = world({ auth: "secret" });
  let client;
  w.connect("https://host/app/realtime/").then((c) => (client = c));
  await settle();
  assert.equal(w.socket.url, "wss://host/app/realtime/ws?hello=1");
  assert.deepEqual(w.socket.protocols, ["realtime.v2", "realtime.v1"]);
  await w.socket.open();
  assert.deepEqual(w.socket.sent, [
    { type: "connect", data: { token: "secret", deviceId: "d1" } },
  ]);
  assert.equal(client, undefined);
  await w.socket.receive(CONNECTED);
  assert.equal(client.state, "connected");
  assert.deepEqual([client.sessionId, client.clientId, client.userId], ["s1", "c1", "ann"]);
  client.close();
});

test("addresses: relative to the page, with a query, and nonsense", async () => {
  const w = world();
  globalThis.location = { href: "https://shop.example/orders/7?x=1#top" };
  try {
    for (const [url, door] of [
      ["/realtime", "wss://shop.example/realtime/ws?hello=1"],
      ["live", "wss://shop.example/orders/live/ws?hello=1"],
      ["http://h:8000/rt?ticket=abc#x", "ws://h:8000/rt/ws?ticket=abc&hello=1"],
      [new URL("ws://h/rt"), "ws://h/rt/ws?hello=1"],
    ]) {
      const client = w.create(url);
      client.connect().catch(() => {});
      await settle();
      assert.equal(w.socket.url, door);
      client.close();
    }
  } finally {
    delete globalThis.location;
  }
  assert.throws(() => w.create("ftp://host/realtime"), TypeError);
  assert.throws(() => w.create("/relative-without-a-page"), TypeError);
});

test("auth is called before each attempt and resume is handed back", async () => {
  let calls = 0;
  const w = world({ auth: async () => `token ${++calls}` });
  const client = await w.connected();
  await w.socket.drop(1006);
  const socket = await w.comeBack({ resumed: true, resume: "token-2" });
  assert.deepEqual(socket.sent[0], {
    type: "connect",
    data: { token: "token 2", resume: "token-1", deviceId: "d1" },
  });
  await socket.drop(4501, "expired");
  const third = await w.comeBack();
  assert.deepEqual(third.sent[0].data, {
    token: "token 3",
    resume: "token-2",
    deviceId: "d1",
  });
  client.close();
});

test("a terminal refusal rejects with the server's words and the close code", async () => {
  const w = world();
  const promise = failure(w.connect());
  await settle();
  await w.socket.open();
  await w.socket.receive({
    type: "error",
    code: "auth_failed",
    error: "Authentication failed: bad",
    retry: false,
  });
  await w.socket.drop(4401, "nope");
  const error = await promise;
  assert.ok(error instanceof RealtimeError && error instanceof Error);
  assert.deepEqual(
    [error.code, error.message, error.retry, error.closeCode],
    ["auth_failed", "Authentication failed: bad", false, 4401],
  );
  await w.timers.advance(100_000);
  assert.equal(w.sockets.length, 1);
  assert.equal(w.timers.count, 0);
});

test("maxTries bounds the attempts", async () => {
  const w = world({ maxTries: 3 });
  const promise = failure(w.connect());
  await settle();
  for (let i = 0; i < 3; i++) {
    await w.socket.drop(1006, "refused");
    await w.timers.advance(1_000);
  }
  const error = await promise;
  assert.deepEqual([error.code, error.retry, error.closeCode], ["unavailable", true, 1006]);
  assert.equal(w.sockets.length, 3);
});

test("connect() gives up after a while, but never once there was a connection", async () => {
  const w = world({ giveUpAfter: 10_000 });
  const client = w.create();
  const tries = collect(client.lifecycle, "reconnecting");
  const promise = failure(client.connect());
  await settle();
  const began = w.timers.now();
  while (client.state === "connecting") {
    await w.socket.drop(1006, "nobody there");
    await w.timers.advance(w.timers.delays[0] ?? 0);
  }
  const error = await promise;
  assert.deepEqual([error.code, error.retry, error.closeCode], ["unavailable", true, 1006]);
  assert.match(error.message, /^No connection after 6 tries, the last one: nobody there$/);
  assert.ok(w.timers.now() - began <= 10_000);
  assert.equal(tries.length, 5);
  assert.deepEqual(tries[0].closeReason, {
    code: 1006,
    reason: "nobody there",
    willReconnect: true,
  });
  assert.equal(w.timers.count, 0);

  // A second connect() has the whole time again.
  const again = client.connect();
  await settle();
  await w.socket.drop();
  await w.comeBack();
  assert.equal(await again, client);
  await w.socket.drop();
  for (let i = 0; i < 30; i++) {
    while (w.socket.readyState === 3) await w.timers.advance(w.timers.delays[0]);
    await w.socket.drop();
  }
  assert.equal(client.state, "reconnecting");
  client.close();
});

test("an auth function that fails is tried again; one that refuses is final", async () => {
  let fail = true;
  const w = world({
    auth: () => {
      if (fail) throw new Error("offline");
      return "t";
    },
  });
  const client = w.create();
  const errors = collect(client.lifecycle, "error");
  const promise = client.connect();
  await settle();
  assert.equal(w.sockets.length, 0);
  assert.equal(errors[0].code, "auth_failed");
  fail = false;
  await w.comeBack();
  assert.equal(await promise, client);
  client.close();

  const refused = world({ auth: () => Promise.reject(new RealtimeError("logged_out", "Log in")) });
  assert.equal((await failure(refused.connect())).code, "logged_out");
  assert.equal(refused.timers.count, 0);
});

test("an attempt that takes too long is given up and tried again", async () => {
  for (const stage of ["auth", "socket", "connected"]) {
    let auth = stage === "auth" ? new Promise(() => {}) : "t";
    const w = world({ auth: () => auth, connectTimeout: 3_000 });
    const client = w.create();
    const promise = client.connect();
    await settle();
    if (stage === "connected") await w.socket.open();
    const first = w.socket;
    await w.timers.advance(2_999);
    assert.equal(client.closeReason, null);
    await w.timers.advance(1);
    assert.equal(client.closeReason.willReconnect, true);
    if (first) assert.notEqual(first.closedWith, null);
    auth = "t";
    await w.comeBack();
    await promise;
    client.close();
  }
});

test("createClient waits for connect(), and what was sent before goes out then", async () => {
  const w = world();
  const client = w.create();
  assert.equal(client.state, "idle");
  await settle();
  assert.equal(w.sockets.length, 0);
  const sent = client.send("hello", 1);
  const both = Promise.all([client.connect(), client.connect()]);
  await settle();
  assert.equal(w.sockets.length, 1);
  await w.socket.welcome();
  assert.deepEqual(await both, [client, client]);
  const [message] = w.socket.fresh();
  assert.equal(message.type, "hello");
  await w.socket.receive({ type: "ack", id: message.id, data: 7 });
  assert.equal(await sent, 7);
  assert.equal(await client.connect(), client);
  client.close();
});

test("states and lifecycle events, apart from server events of the same names", async () => {
  const w = world();
  const client = w.create();
  const states = [];
  client.lifecycle.on("state", (state, previous) => states.push(`${previous}>${state}`));
  const lifecycle = { close: [], error: [], reconnecting: [], resumed: [] };
  const wire = { close: [], error: [], reconnecting: [], resumed: [], state: [], connected: [] };
  for (const type in lifecycle) client.lifecycle.on(type, (x) => lifecycle[type].push(x));
  for (const type in wire) client.on(type, (x) => wire[type].push(x));
  client.connect();
  await settle();
  await w.socket.welcome();
  for (const type of ["close", "error", "reconnecting", "resumed", "state"]) {
    await w.socket.receive({ type, data: `event ${type}` });
    assert.deepEqual(wire[type], [`event ${type}`]);
  }
  assert.deepEqual(lifecycle, { close: [], error: [], reconnecting: [], resumed: [] });
  await w.socket.receive({
    type: "error",
    code: "limit_exceeded",
    error: "Too much",
    retry: false,
  });
  assert.equal(lifecycle.error[0].code, "limit_exceeded");
  assert.equal(wire.error.length, 1);

  await w.socket.drop(1012, "restart");
  assert.deepEqual(lifecycle.close, [{ code: 1012, reason: "restart", willReconnect: true }]);
  assert.deepEqual(client.closeReason, lifecycle.close[0]);
  assert.deepEqual(lifecycle.reconnecting, [
    { attempt: 1, delay: 250, closeReason: lifecycle.close[0] },
  ]);
  assert.equal(client.state, "reconnecting");
  await w.comeBack({ sessionId: "s2", resumed: false });
  assert.deepEqual(lifecycle.resumed, [{ sessionId: "s2", resumed: false }]);
  client.close(4000, "bye");
  assert.deepEqual(lifecycle.close[1], { code: 4000, reason: "bye", willReconnect: false });
  assert.deepEqual(w.socket.closedWith, { code: 4000, reason: "bye" });
  assert.deepEqual(states, [
    "idle>connecting",
    "connecting>connected",
    "connected>reconnecting",
    "reconnecting>connected",
    "connected>closed",
  ]);
});

test("close() rejects everything that waits, sends what was just said, and stops for good", async () => {
  const w = world();
  const client = await w.connected();
  const waiting = failure(client.send("a"));
  const joining = failure(client.join("r"));
  client.send("last", 1, { ack: false });
  client.close();
  assert.equal((await waiting).code, "closed");
  assert.equal((await joining).code, "closed");
  assert.equal(w.socket.sent.at(-1).type, "last");
  assert.equal((await failure(client.send("b"))).code, "closed");
  assert.equal((await failure(client.join("r"))).code, "closed");
  assert.equal(w.timers.count, 0);

  const early = world();
  const promise = failure(early.connect());
  const other = early.create();
  const second = failure(other.connect());
  await settle();
  other.close();
  assert.equal((await second).code, "closed");
  assert.deepEqual(early.timers.delays, [10_000]); // of the other client alone
  await early.sockets[0].drop(4403);
  assert.equal((await promise).closeCode, 4403);
});

test("a closed client may connect again, as a new session", async () => {
  const w = world();
  const client = await w.connected();
  client.close();
  const again = client.connect();
  await settle();
  await w.socket.open();
  assert.deepEqual(w.socket.sent[0], { type: "connect", data: { deviceId: "d1" } });
  await w.socket.receive({ ...CONNECTED, sessionId: "s9" });
  await again;
  assert.equal(client.sessionId, "s9");
  client.close();
});

test("a late socket of an attempt that was given up changes nothing", async () => {
  const w = world();
  const client = await w.connected();
  const old = w.socket;
  const { onmessage, onclose } = old;
  await old.drop(1006);
  await w.comeBack();
  const seen = collect(client, "tick");
  onmessage({ data: '{"type":"tick","data":1}' });
  onclose({ code: 4401, reason: "" });
  await settle();
  assert.deepEqual(seen, []);
  assert.equal(client.state, "connected");
  client.close();
});

test("refresh sends the given token, or what auth brings, and keeps a given one", async () => {
  const w = world({ auth: "old" });
  const client = await w.connected();
  const promise = client.refresh("new");
  await settle();
  const [message] = w.socket.fresh();
  assert.deepEqual([message.type, message.data], ["refresh", { token: "new" }]);
  await w.socket.receive({ type: "ack", id: message.id, data: { success: true, expiresAt: 5 } });
  assert.deepEqual(await promise, { success: true, expiresAt: 5 });
  await w.socket.drop();
  const socket = await w.comeBack();
  assert.equal(socket.sent[0].data.token, "new");
  client.close();

  const f = world({ auth: async () => "fetched" });
  const other = await f.connected();
  failure(other.refresh());
  await settle();
  assert.deepEqual(f.socket.fresh()[0].data, { token: "fetched" });
  other.close();
});

test("a socket class that throws is a terminal refusal, none at all a clear error", async () => {
  const w = world({
    WebSocket: class {
      constructor() {
        throw new Error("mixed content");
      }
    },
  });
  const error = await failure(w.connect());
  assert.equal(error.code, "connect_failed");
  assert.match(error.cause.message, /mixed content/);
});

test("handlers: on, once, off, unsubscribe; one that throws or rejects disturbs nobody", async () => {
  const w = world();
  const client = await w.connected();
  const calls = [];
  const a = (data) => calls.push(["a", data]);
  client.on("t", () => {
    throw new Error("broken");
  });
  client.on("t", async () => {
    throw new Error("broken later");
  });
  const unsubscribe = client.on("t", a);
  client.once("t", (data) => calls.push(["once", data]));
  const reports = await reported(async () => {
    await w.socket.receive({ type: "t", data: 1 }, { type: "t", data: 2 });
  });
  assert.deepEqual(calls, [
    ["a", 1],
    ["once", 1],
    ["a", 2],
  ]);
  assert.equal(reports.length, 4);
  unsubscribe();
  unsubscribe();
  client.off("t");
  client.on("t", a);
  client.off("t", a);
  await w.socket.receive({ type: "t", data: 3 });
  assert.equal(calls.length, 3);
  assert.throws(() => client.on("t", "no function"), TypeError);
  assert.throws(() => {
    for (let i = 0; i <= 10_000; i++) client.on(`e${i}`, a);
  }, RangeError);
  client.close();
});
