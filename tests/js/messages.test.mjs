import assert from "node:assert/strict";
import { test } from "node:test";

import { RealtimeError } from "../../starlette_realtime/static/client.js";
import { collect, failure, reported, settle, world } from "./helpers/fakes.mjs";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

test("send resolves with the ack's data and carries an id and a messageId of its own", async () => {
  const w = world();
  const client = await w.connected();
  const first = client.send("move", { x: 1 }, { room: "game/1" });
  const second = client.send("move", { x: 2 }, { messageId: "mine" });
  await settle();
  const [a, b] = w.socket.fresh();
  assert.deepEqual([a.type, a.room, a.data], ["move", "game/1", { x: 1 }]);
  assert.match(a.messageId, UUID);
  assert.equal(b.messageId, "mine");
  assert.notEqual(a.id, b.id);
  await w.socket.receive(
    { type: "ack", id: b.id, data: "two" },
    { type: "ack", id: a.id, data: "one" },
  );
  assert.deepEqual(await Promise.all([first, second]), ["one", "two"]);
  client.close();
});

test("without crypto.randomUUID, as on a page without TLS, ids are still random", async () => {
  const w = world();
  const client = await w.connected();
  Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true });
  try {
    failure(client.send("a"));
    failure(client.send("a"));
    await settle();
  } finally {
    delete crypto.randomUUID;
  }
  const [a, b] = w.socket.fresh();
  assert.match(a.messageId, /^[0-9a-f]{32}$/);
  assert.notEqual(a.messageId, b.messageId);
  client.close();
});

test("send rejects with the server's error, and on timeout; a late ack is nobody's", async () => {
  const w = world();
  const client = await w.connected();
  const refused = failure(client.send("buy"));
  const late = failure(client.send("slow", 1, { timeout: 50 }));
  const usual = failure(client.send("slow", 2));
  await settle();
  const [a, b] = w.socket.fresh();
  await w.socket.receive({
    type: "error",
    id: a.id,
    code: "sold_out",
    error: "Sold out",
    retry: true,
  });
  const error = await refused;
  assert.deepEqual([error.code, error.message, error.retry], ["sold_out", "Sold out", true]);
  await w.timers.advance(50);
  assert.equal((await late).code, "timeout");
  await w.socket.receive({ type: "ack", id: b.id, data: 1 });
  await w.timers.advance(9_949);
  let timedOut = false;
  usual.then(() => (timedOut = true));
  await settle();
  assert.equal(timedOut, false);
  await w.timers.advance(1);
  assert.equal((await usual).code, "timeout");
  client.close();
});

test("ack:false resolves on handing over and asks for nothing", async () => {
  const w = world();
  const client = await w.connected();
  assert.equal(await client.send("a", 1, { ack: false }), undefined);
  await settle();
  assert.deepEqual(w.socket.fresh(), [{ type: "a", data: 1 }]);
  await w.socket.drop();
  assert.equal(await client.send("b", 2, { ack: false }), undefined);
  await w.comeBack();
  assert.deepEqual(w.socket.fresh(), [{ type: "b", data: 2 }]);
  client.close();
});

test("volatile is dropped without a connection, never queued, never sent again", async () => {
  const w = world();
  const client = await w.connected();
  const asked = failure(client.send("v", 0, { volatile: true, ack: true }));
  await w.socket.drop();
  assert.equal((await asked).code, "disconnected");
  assert.equal(await client.send("v", 1, { volatile: true }), undefined);
  assert.equal(
    (await failure(client.send("v", 2, { volatile: true, ack: true }))).code,
    "disconnected",
  );
  await w.comeBack();
  assert.deepEqual(w.socket.fresh(), []);
  await client.send("v", 3, { volatile: true });
  await settle();
  assert.deepEqual(w.socket.fresh(), [{ type: "v", data: 3 }]);
  client.close();
});

test("the offline queue is bounded in messages and bytes; the newest is refused", async () => {
  const w = world({ maxQueue: 3 });
  const client = w.create();
  const kept = [1, 2, 3].map((n) => client.send("n", n));
  const error = await failure(client.send("n", 4));
  assert.deepEqual([error.code, error.retry], ["queue_full", true]);
  client.connect();
  await settle();
  await w.socket.welcome();
  const sent = w.socket.fresh();
  assert.deepEqual(
    sent.map(({ data }) => data),
    [1, 2, 3],
  );
  await w.socket.receive(...sent.map(({ id, data }) => ({ type: "ack", id, data })));
  assert.deepEqual(await Promise.all(kept), [1, 2, 3]);
  await w.socket.drop();
  const again = failure(client.send("n", 5)); // its place was given back
  client.close();
  assert.equal((await again).code, "closed");

  const b = world({ maxQueueBytes: 1_000_000 });
  const bytes = b.create();
  const big = "x".repeat(600_000);
  const first = failure(bytes.send("n", big));
  assert.equal((await failure(bytes.send("n", big))).code, "queue_full");
  const umlauts = failure(bytes.send("n", "ü".repeat(150_000))); // 300 000 bytes
  assert.equal((await failure(bytes.send("n", "€".repeat(50_000)))).code, "queue_full");
  bytes.close();
  await Promise.all([first, umlauts]);

  const count = world();
  const thousand = count.create();
  const all = Array.from({ length: 1001 }, (_, n) => failure(thousand.send("n", n)));
  assert.equal((await all[1000]).code, "queue_full");
  thousand.close();
  assert.deepEqual(
    new Set((await Promise.all(all.slice(0, 1000))).map(({ code }) => code)),
    new Set(["closed"]),
  );
});

test("what waits for answers is bounded too, the socket's own backlog included", async () => {
  const w = world({ maxQueue: 2, maxQueueBytes: 1_000 });
  const client = await w.connected();
  const [a, b] = [failure(client.send("a")), failure(client.send("b"))];
  assert.equal((await failure(client.send("c"))).code, "queue_full");
  await settle();
  for (const { id } of w.socket.fresh())
    await w.socket.receive({ type: "error", id, code: "no", error: "no" });
  await Promise.all([a, b]);
  w.socket.bufferedAmount = 990;
  assert.equal((await failure(client.send("c", 1, { ack: false }))).code, "queue_full");
  w.socket.bufferedAmount = 0;
  assert.equal(await client.send("c", 1, { ack: false }), undefined);
  client.close();
});

test("so many messages may be unanswered at a time; the others wait their turn", async () => {
  const w = world();
  const client = await w.connected();
  const answered = [];
  for (let n = 0; n < 100; n++) client.send("n", n).then((data) => answered.push(data));
  await settle();
  const first = w.socket.fresh();
  assert.equal(first.length, 64);
  // What belongs to this connection does not wait.
  await client.send("now", 1, { volatile: true });
  await settle();
  assert.deepEqual(
    w.socket.fresh().map(({ type }) => type),
    ["now"],
  );
  await w.socket.receive(...first.map(({ id, data }) => ({ type: "ack", id, data })));
  const rest = w.socket.fresh();
  assert.equal(rest.length, 36);
  await w.socket.receive(...rest.map(({ id, data }) => ({ type: "ack", id, data })));
  assert.deepEqual(
    answered,
    Array.from({ length: 100 }, (_, n) => n),
  );
  client.close();
});

test("what the server refused as too many goes again after a pause, then one at a time", async () => {
  const w = world();
  const client = await w.connected();
  const sent = [1, 2, 3, 4].map((n) => client.send("n", n));
  const question = failure(client.send("v", 0, { volatile: true, ack: true }));
  await settle();
  const [a, b, c, d, v] = w.socket.fresh();
  const refusal = { type: "error", code: "rate_limited", error: "Rate limit exceeded", retry: true };
  await w.socket.receive(
    { type: "ack", id: a.id, data: 1 },
    ...[b, c, d, v].map(({ id }) => ({ ...refusal, id })),
  );
  assert.equal((await question).code, "rate_limited");
  sent.push(client.send("n", 5));
  await w.timers.advance(999);
  assert.deepEqual(w.socket.fresh(), []);
  await w.timers.advance(1);
  for (const n of [2, 3, 4, 5]) {
    const [message, ...more] = w.socket.fresh();
    assert.deepEqual([message.data, more.length], [n, 0]);
    if (n === 2) assert.deepEqual(message, b);
    await w.socket.receive({ type: "ack", id: message.id, data: n });
  }
  assert.deepEqual(await Promise.all(sent), [1, 2, 3, 4, 5]);
  client.send("n", 6);
  client.send("n", 7);
  await settle();
  const free = w.socket.fresh();
  assert.equal(free.length, 2);
  await w.socket.receive(...free.map(({ id }) => ({ type: "ack", id })));
  client.close();
  assert.equal(w.timers.count, 0);
});

test("a message refused again and again ends with its timeout", async () => {
  const w = world();
  const client = await w.connected();
  const given = failure(client.send("n", 1));
  await settle();
  for (let i = 0; i < 10; i++) {
    const [{ id }] = w.socket.fresh();
    await w.socket.receive({ type: "error", id, code: "rate_limited", error: "No", retry: true });
    await w.timers.advance(1_000);
  }
  assert.equal((await given).code, "timeout");
  client.close();
  assert.equal(w.timers.count, 0);
});

test("a message larger than maxPayload is refused here, in UTF-8 bytes", async () => {
  const w = world();
  const client = await w.connected({ maxPayload: 1_000 });
  assert.equal((await failure(client.send("a", "x".repeat(1_000)))).code, "too_large");
  assert.equal(
    (await failure(client.send("a", "😀".repeat(245), { ack: false }))).code,
    "too_large",
  );
  assert.equal(await client.send("a", "😀".repeat(235), { ack: false }), undefined);
  await w.socket.drop();
  const queued = failure(client.send("a", "x".repeat(800)));
  await w.comeBack({ maxPayload: 500 });
  assert.equal((await queued).code, "too_large");
  assert.deepEqual(w.socket.fresh().length, 0);
  client.close();
});

test("what cannot be sent is refused with a reason", async () => {
  const w = world();
  const client = await w.connected();
  const cycle = {};
  cycle.self = cycle;
  let deep = 1;
  for (let i = 0; i < 64; i++) deep = [deep];
  let escaped = { $bytes: "x" }; // its escape is a level of its own
  for (let i = 0; i < 62; i++) escaped = [escaped];
  for (const data of [cycle, 10n, "\ud800", { "\udc00": 1 }, deep, escaped]) {
    assert.equal((await failure(client.send("a", data))).code, "invalid_message");
  }
  assert.equal(await client.send("a", deep[0], { ack: false }), undefined);
  assert.equal(await client.send("a", escaped[0], { ack: false }), undefined);
  assert.ok((await failure(client.send("", 1))) instanceof TypeError);
  assert.ok(
    (await failure(client.send("a", 1, { messageId: "x".repeat(65) }))) instanceof TypeError,
  );
  client.close();
});

test("messages of one turn share a frame, within the protocol's bounds", async () => {
  const w = world();
  const client = await w.connected({ maxPayload: 3_000 });
  w.socket.frames.length = 0;
  for (let i = 0; i < 600; i++) client.send("n", i, { ack: false });
  await settle();
  const counts = w.socket.frames.map((frame) => frame.split("\n").length);
  assert.ok(
    w.socket.frames.every((frame) => Buffer.byteLength(frame) <= 3_000),
    "bytes of a frame",
  );
  assert.ok(counts.length < 10);
  assert.deepEqual(
    w.socket.sent.map(({ data }) => data),
    Array.from({ length: 600 }, (_, i) => i),
  );
  client.close();

  const many = world();
  const other = await many.connected();
  many.socket.frames.length = 0;
  for (let i = 0; i < 600; i++) other.send("n", i, { ack: false });
  await settle();
  assert.deepEqual(
    many.socket.frames.map((frame) => frame.split("\n").length),
    [256, 256, 88],
  );
  other.close();
});

test("without the subprotocol each frame is one object, both ways", async () => {
  const w = world();
  const client = await w.connected({}, "");
  w.socket.frames.length = 0;
  client.send("a", 1, { ack: false });
  client.send("b", 2, { ack: false });
  await settle();
  assert.deepEqual(w.socket.frames, ['{"type":"a","data":1}', '{"type":"b","data":2}']);
  const seen = collect(client, "pretty");
  await w.socket.raw('{\n "type": "pretty",\n "data": 1\n}');
  assert.deepEqual(seen, [1]);
  client.close();
});

test("an older server's several objects are taken apart as well", async () => {
  const w = world();
  const client = await w.connected({}, "realtime.v1");
  const seen = collect(client, "n");
  await w.socket.raw('{"type":"n","data":1}\n{"type":"n","data":2}');
  assert.deepEqual(seen, [1, 2]);
  client.close();
});

test("an event without a type continues the one before it in its frame", async () => {
  const w = world();
  const client = await w.connected();
  const joined = await w.joined(client, { position: { epoch: "e", offset: 3 } });
  const wrong = collect(client.lifecycle, "error");
  const events = [];
  for (const [source, type] of [[joined, "n"], [client, "m"]]) {
    source.on(type, (data, { room, offset }) => events.push([data, room, offset]));
  }
  await w.socket.raw(
    '{"type":"n","room":"r","offset":4,"data":1}\n{"data":2}\n{"offset":9,"data":{"$bytes":"AA=="}}\n' +
      '{"data":null}\n{"type":"m","data":5}\n{"data":6}',
  );
  assert.deepEqual(events, [
    [1, "r", 4],
    [2, "r", 5],
    [new Uint8Array([0]), "r", 9],
    [null, "r", 10],
    [5, undefined, undefined],
    [6, undefined, undefined],
  ]);
  assert.equal(joined.position.offset, 10);
  // Whoever sent a payload that cannot be read takes nothing from what others sent.
  await w.socket.raw('{"type":"m","data":{"$bytes":"%"}}\n{"data":6.5}');
  assert.deepEqual(events.pop(), [6.5, undefined, undefined]);
  // Not over the frame's end, and not behind what is no message.
  await w.socket.raw('{"data":7}');
  await w.socket.raw('{"type":"m","data":8}\n{oops\n{"data":9}\n{"type":"m","data":10}');
  assert.deepEqual(
    wrong.map(({ code }) => code),
    Array(4).fill("invalid_message"),
  );
  assert.deepEqual(events.slice(6), [
    [8, undefined, undefined],
    [10, undefined, undefined],
  ]);
  client.close();
});

test("a frame may hold several objects, and may be binary", async () => {
  const w = world();
  const client = await w.connected();
  const seen = collect(client, "n");
  await w.socket.raw('{"type":"n","data":1}\n\n{"type":"n","data":2}\n');
  await w.socket.raw(new TextEncoder().encode('{"type":"n","data":"ü"}').buffer);
  assert.deepEqual(seen, [1, 2, "ü"]);
  client.close();
});

test("bytes travel at any depth and arrive as Uint8Array", async () => {
  const w = world();
  const client = await w.connected();
  const bytes = new Uint8Array([0, 1, 2]);
  const data = {
    a: bytes,
    b: [bytes.buffer, { c: new Uint8Array([9, 0, 1, 2, 9]).subarray(1, 4) }],
    e: new Uint8Array(),
    buffer: Buffer.from([0, 1, 2]),
    date: new Date(0),
  };
  client.send("b", data, { ack: false });
  await settle();
  const wire = { $bytes: "AAEC" };
  assert.deepEqual(w.socket.fresh()[0].data, {
    a: wire,
    b: [wire, { c: wire }],
    e: { $bytes: "" },
    buffer: wire,
    date: "1970-01-01T00:00:00.000Z",
  });
  const seen = collect(client, "b");
  await w.socket.receive({
    type: "b",
    data: { a: wire, b: [wire, { c: wire }], more: { $bytes: "x", y: 1 } },
  });
  assert.deepEqual(seen[0], { a: bytes, b: [bytes, { c: bytes }], more: { $bytes: "x", y: 1 } });
  assert.ok(seen[0].a instanceof Uint8Array);
  await w.socket.receive({ type: "b", data: wire });
  assert.deepEqual(seen[1], bytes);
  const acked = client.send("get");
  await settle();
  await w.socket.receive({ type: "ack", id: w.socket.fresh()[0].id, data: wire });
  assert.deepEqual(await acked, bytes);
  client.close();
});

test("look-alikes of bytes are escaped once, and come back as they were", async () => {
  const w = world();
  const client = await w.connected();
  const alikes = [
    { $bytes: "not bytes" },
    { $bytes: 5 },
    { $escaped: { $bytes: "x" } },
    { $escaped: 1 },
    { deep: [{ $bytes: { $bytes: "AAEC" } }] },
    { $bytes: "gone", left: undefined },
    { $bytes: "two", members: 1 },
  ];
  const seen = collect(client, "echo");
  for (const data of alikes) {
    client.send("echo", data, { ack: false });
    await settle();
    await w.socket.receive(w.socket.fresh()[0]);
  }
  assert.deepEqual(seen, JSON.parse(JSON.stringify(alikes)));
  assert.deepEqual(
    w.socket.sent.slice(1, 3).map(({ data }) => data),
    [{ $escaped: { $bytes: "not bytes" } }, { $escaped: { $bytes: 5 } }],
  );
  client.close();
});

test("large arrays go through in pieces, unchanged", async () => {
  const w = world();
  const client = await w.connected({ maxPayload: 20_000_000 });
  const large = new Uint8Array(5_000_000).map((_, i) => i * 7);
  client.send("large", large, { ack: false });
  await settle();
  const seen = collect(client, "large");
  await w.socket.receive(w.socket.fresh()[0]);
  assert.ok(Buffer.from(large).equals(Buffer.from(seen[0])));
  client.close();
});

test("a member named __proto__ is data, not a prototype", async () => {
  const w = world();
  const client = await w.connected();
  const seen = collect(client, "p");
  await w.socket.raw(
    '{"type":"p","data":{"__proto__":{"admin":true},"x":{"__proto__":{"$bytes":"AAEC"}}}}',
  );
  assert.equal(seen[0].admin, undefined);
  assert.equal(Object.getPrototypeOf(seen[0]), Object.prototype);
  assert.deepEqual(
    Object.getOwnPropertyDescriptor(seen[0].x, "__proto__").value,
    new Uint8Array([0, 1, 2]),
  );
  client.send("p", seen[0], { ack: false });
  await settle();
  assert.match(w.socket.frames.at(-1), /"__proto__":\{"admin":true\}/);
  client.close();
});

test("malformed input never throws, is told once each, and the rest goes on", async () => {
  const w = world();
  const client = await w.connected();
  const errors = collect(client.lifecycle, "error");
  const seen = collect(client, "ok");
  const bad = [
    "{",
    "null",
    "[]",
    "5",
    '"x"',
    '{"type":5}',
    '{"no":"type"}',
    '{"type":"x","data":{"$bytes":"%%%"}}',
    `{"type":"x","data":${"[".repeat(200_000)}${"]".repeat(200_000)}}`,
  ];
  const reports = await reported(async () => {
    for (const text of bad) await w.socket.raw(`${text}\n{"type":"ok"}`);
    for (const message of [
      { type: "ack" },
      { type: "ack", id: 99 },
      { type: "ack", id: { deep: 1 }, data: 1 },
      { type: "joined" },
      { type: "joined", roomId: "nowhere", members: 5 },
      { type: "left", roomId: "nowhere" },
      { type: "error" },
      { type: "error", code: "x", id: "unknown" },
      { type: "connected" },
      { type: "tick", room: "nowhere", offset: 1 },
      { type: "tick", room: { not: "a name" } },
      { type: "tick", ns: "/nowhere" },
      { type: "tick", ns: 5 },
      { type: "presence-update", data: null },
      { type: "pong" },
    ]) {
      await w.socket.receive(message);
    }
    await w.socket.raw(undefined);
    await w.socket.raw(12);
  });
  assert.deepEqual(reports, []);
  assert.equal(seen.length, bad.length);
  assert.ok(errors.length >= bad.length && errors.every(({ code }) => code === "invalid_message"));
  assert.equal(client.state, "connected");
  assert.deepEqual([client.sessionId, client.clientId], ["s1", "c1"]);
  client.close();
});

test("the server's questions are answered by handle()", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  client.handle("sum", async ([a, b], event) => ({ sum: a + b, type: event.type }));
  client.handle("both", () => "client");
  room.handle("both", (data, event) => [event.room, data]);
  client.handle("nothing", () => {});
  await w.socket.receive(
    { type: "sum", id: "q1", data: [1, 2] },
    { type: "both", id: 2, room: "r", data: 5 },
    { type: "both", id: 3, data: 5 },
    { type: "sum", id: 4, room: "r", data: [2, 2] },
    { type: "nothing", id: 5 },
    { type: "unknown", id: 6 },
  );
  const replies = new Map(w.socket.fresh().map((reply) => [reply.id, reply]));
  assert.deepEqual(replies.get("q1"), { type: "ack", id: "q1", data: { sum: 3, type: "sum" } });
  assert.deepEqual(replies.get(2).data, ["r", 5]);
  assert.equal(replies.get(3).data, "client");
  assert.deepEqual(replies.get(4).data, { sum: 4, type: "sum" });
  assert.equal(replies.get(5).data, null);
  assert.deepEqual(replies.get(6).data, { error: "No handler", code: "no_handler" });
  client.close();
});

test("a handler's failure stays inside unless it is a RealtimeError; listeners count as receipt", async () => {
  const w = world();
  const client = await w.connected({ maxPayload: 500 });
  client.handle("bug", () => {
    throw new Error("password=hunter2");
  });
  client.handle("no", async () => {
    throw new RealtimeError("busy", "I am busy");
  });
  client.handle("huge", () => "x".repeat(600));
  const heard = collect(client, "news");
  const off = client.handle("gone", () => 1);
  off();
  const reports = await reported(async () => {
    await w.socket.receive({ type: "bug", id: 1 }, { type: "no", id: 2 }, { type: "huge", id: 3 });
    await w.socket.receive({ type: "news", id: 4, data: "n" }, { type: "gone", id: 5 });
  });
  const replies = new Map(w.socket.fresh().map(({ id, data }) => [id, data]));
  assert.deepEqual(replies.get(1), { code: "handler_error", error: "Handler failed" });
  assert.deepEqual(replies.get(2), { code: "busy", error: "I am busy" });
  assert.equal(replies.get(3).code, "too_large");
  assert.equal(replies.get(4), null);
  assert.equal(replies.get(5).code, "no_handler");
  assert.deepEqual(heard, ["n"]);
  assert.equal(reports.length, 1);
  client.close();
});

test("a question that is asked again on the next connection is handled once", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const answers = [];
  const heard = collect(room, "q");
  room.handle("q", () => new Promise((resolve) => answers.push(resolve)));
  const [first, second] = [1, 2].map((id) => ({ type: "q", id, room: "r", data: id }));
  await w.socket.receive(first, second);
  answers[0]("one");
  await settle();
  assert.deepEqual(w.socket.fresh(), [{ type: "ack", id: 1, data: "one" }]);
  await w.socket.drop();
  await w.comeBack();
  // The one is answered again, in case the answer was lost; the other when there is an answer.
  await w.socket.receive(first, second);
  const acks = () => w.socket.fresh().filter(({ type }) => type === "ack");
  assert.deepEqual(acks(), [{ type: "ack", id: 1, data: "one" }]);
  answers[1]("two");
  await settle();
  assert.deepEqual(acks(), [{ type: "ack", id: 2, data: "two" }]);
  assert.deepEqual(heard, [1, 2]);
  assert.equal(answers.length, 2);
  // Another session's questions are others, whatever their numbers.
  await w.socket.drop();
  await w.comeBack({ resumed: false, sessionId: "s2" });
  await w.socket.receive(first);
  assert.equal(answers.length, 3);
  client.close();
});

test("what is kept of answers is bounded", async () => {
  const w = world();
  const client = await w.connected();
  let handled = 0;
  client.handle("q", () => "x".repeat(900_000) + ++handled);
  for (let id = 0; id < 6; id++) await w.socket.receive({ type: "q", id });
  // The newest are known, the oldest no more.
  await w.socket.receive({ type: "q", id: 5 });
  assert.equal(handled, 6);
  await w.socket.receive({ type: "q", id: 0 });
  assert.equal(handled, 7);
  client.close();
});

test("an answer that is ready only after the connection was lost is not sent on another", async () => {
  const w = world();
  const client = await w.connected();
  let answer;
  client.handle("q", () => new Promise((resolve) => (answer = resolve)));
  await w.socket.receive({ type: "q", id: 1 });
  await w.socket.drop();
  await w.comeBack();
  answer("late");
  await settle();
  assert.deepEqual(w.socket.fresh(), []);
  client.close();
});
