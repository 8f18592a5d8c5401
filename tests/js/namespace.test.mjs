import assert from "node:assert/strict";
import { test } from "node:test";

import { JOINED, collect, failure, settle, world } from "./helpers/fakes.mjs";

const hello = ({ sent }) => sent.filter(({ type, ns }) => type === "connect" && ns);

async function admin(w, client, options) {
  const namespace = client.namespace("/admin", options);
  await settle();
  await w.socket.receive({ type: "connected", ns: "/admin", userId: "ann" });
  return namespace;
}

test("a namespace shows itself, is admitted, and marks what it says", async () => {
  const w = world({ auth: "main" });
  const client = await w.connected();
  const namespace = client.namespace("/admin", { auth: async () => "special" });
  const early = namespace.send("early", 1);
  await settle();
  assert.deepEqual(hello(w.socket), [
    { type: "connect", ns: "/admin", data: { token: "special", deviceId: "d1" } },
  ]);
  assert.deepEqual([namespace.state, w.socket.fresh()], ["connecting", []]);
  const connecting = namespace.connect();
  await w.socket.receive({ type: "connected", ns: "/admin" });
  assert.equal(await connecting, namespace);
  assert.equal(namespace.state, "connected");
  const [message] = w.socket.fresh();
  assert.deepEqual([message.type, message.ns], ["early", "/admin"]);
  await w.socket.receive({ type: "ack", id: message.id, ns: "/admin", data: 2 });
  assert.equal(await early, 2);
  assert.equal(client.namespace("/admin"), namespace);
  assert.equal(client.namespace("/"), client);
  client.namespace("/other");
  await settle();
  assert.deepEqual(hello(w.socket)[1].data, { token: "main", deviceId: "d1" });
  client.close();
});

test("events, rooms, questions and members stay in their namespace", async () => {
  const w = world();
  const client = await w.connected();
  const namespace = await admin(w, client);
  const mine = await w.joined(client);
  const joining = namespace.join("r");
  await settle();
  const [join] = w.socket.fresh();
  assert.deepEqual([join.type, join.ns], ["join", "/admin"]);
  await w.socket.receive({ ...JOINED, roomId: "r", id: join.id, ns: "/admin" });
  const theirs = await joining;
  await w.timers.advance(0);
  assert.notEqual(mine, theirs);
  const seen = [
    collect(client, "t"),
    collect(namespace, "t"),
    collect(mine, "t"),
    collect(theirs, "t"),
  ];
  await w.socket.receive(
    { type: "t", data: "main" },
    { type: "t", ns: "/admin", data: "admin" },
    { type: "t", room: "r", data: "room" },
    { type: "t", room: "r", ns: "/admin", data: "admin room" },
  );
  assert.deepEqual(seen, [["main"], ["admin"], ["room"], ["admin room"]]);
  namespace.handle("q", () => "a");
  await w.socket.receive({ type: "q", id: 1, ns: "/admin" });
  assert.deepEqual(w.socket.fresh(), [{ type: "ack", id: 1, ns: "/admin", data: "a" }]);
  failure(theirs.send("x"));
  await settle();
  assert.deepEqual(
    w.socket.fresh().map(({ ns, room }) => [ns, room]),
    [["/admin", "r"]],
  );
  client.close();
});

test("after a reconnect it shows itself again, then rejoins, then sends what waited", async () => {
  const w = world();
  const client = await w.connected();
  const namespace = await admin(w, client);
  const joining = namespace.join("r");
  await settle();
  await w.socket.receive({ ...JOINED, roomId: "r", id: w.socket.fresh()[0].id, ns: "/admin" });
  const room = await joining;
  await w.socket.drop();
  failure(room.send("m", 1));
  const socket = await w.comeBack();
  assert.equal(hello(socket).length, 1);
  assert.deepEqual(socket.fresh(), []);
  await socket.receive({ type: "connected", ns: "/admin" });
  const [join] = socket.fresh();
  assert.deepEqual([join.type, join.since], ["join", { epoch: "e", offset: 0 }]);
  await socket.receive({ ...JOINED, roomId: "r", id: join.id, ns: "/admin", recovered: true });
  assert.deepEqual(
    socket.fresh().map(({ type, ns }) => [type, ns]),
    [["m", "/admin"]],
  );
  client.close();
});

test("a refusal ends the namespace alone, until it is asked for again", async () => {
  const w = world();
  const client = await w.connected();
  const namespace = client.namespace("/admin");
  const errors = collect(namespace.lifecycle, "error");
  const calls = [namespace.connect(), namespace.send("a"), namespace.join("r")].map(failure);
  await settle();
  await w.socket.receive({
    type: "error",
    ns: "/admin",
    code: "auth_failed",
    error: "Authentication failed",
    retry: false,
  });
  for (const error of await Promise.all(calls)) assert.equal(error.code, "auth_failed");
  assert.equal(errors.length, 1);
  assert.deepEqual([namespace.state, client.state], ["closed", "connected"]);
  assert.equal((await failure(namespace.send("b"))).code, "auth_failed");
  assert.equal((await failure(namespace.join("b"))).code, "auth_failed");
  const again = namespace.connect();
  await settle();
  assert.equal(hello(w.socket).length, 2);
  await w.socket.receive({ type: "connected", ns: "/admin" });
  assert.equal(await again, namespace);
  client.close();
  assert.equal((await failure(namespace.connect())).code, "closed");
});

test("a refusal for now, and silence, are tried again", async () => {
  const w = world();
  const client = await w.connected();
  const namespace = client.namespace("/admin");
  await settle();
  await w.socket.receive({
    type: "error",
    ns: "/admin",
    code: "unavailable",
    error: "Later",
    retry: true,
  });
  await w.timers.advance(250);
  assert.equal(hello(w.socket).length, 2);
  await w.timers.advance(10_000);
  assert.equal(hello(w.socket).length, 3);
  await w.socket.receive({ type: "connected", ns: "/admin" });
  assert.equal(namespace.state, "connected");
  client.close();
  assert.equal(w.timers.count, 0);
});
