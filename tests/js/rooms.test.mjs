import assert from "node:assert/strict";
import { test } from "node:test";

import { JOINED, collect, failure, reported, settle, world } from "./helpers/fakes.mjs";

const at = (offset, more = {}) => ({ type: "tick", room: "r", offset, data: offset, ...more });
const position = (offset, epoch = "e") => ({ epoch, offset });
const members = [
  { userId: "ann", user: { name: "Ann" }, status: "online" },
  { userId: "bob", user: { name: "Bob" } },
];

test("join gives the room with members, recent messages and position; twice is once", async () => {
  const w = world();
  const client = await w.connected();
  const first = client.join("chat/7");
  const second = client.join("chat/7");
  await settle();
  const joins = w.socket.fresh();
  assert.deepEqual(joins, [{ type: "join", room: "chat/7", id: joins[0].id }]);
  const recentMessages = [{ type: "new-message", offset: 4, data: { content: "hi" } }];
  await w.socket.receive({
    type: "joined",
    roomId: "chat/7",
    id: joins[0].id,
    members,
    recentMessages,
    position: position(4),
  });
  const room = await first;
  assert.equal(await second, room);
  assert.equal(await client.join("chat/7"), room);
  assert.equal(client.room("chat/7"), room);
  assert.deepEqual([room.name, room.joined, room.recovered], ["chat/7", true, undefined]);
  assert.deepEqual(room.members, members);
  assert.deepEqual(room.recentMessages, recentMessages);
  assert.deepEqual(room.position, position(4));
  assert.deepEqual(w.socket.fresh(), []);
  client.close();
});

test("a refused join rejects and leaves nothing behind; a timed out one leaves the server too", async () => {
  const w = world();
  const client = await w.connected();
  const refused = failure(client.join("r"));
  await settle();
  await w.socket.receive({
    type: "error",
    id: w.socket.fresh()[0].id,
    code: "access_denied",
    error: "Access denied",
    retry: false,
  });
  assert.equal((await refused).code, "access_denied");
  assert.equal(client.room("r"), undefined);
  const late = failure(client.join("r", { timeout: 500 }));
  await w.timers.advance(500);
  assert.equal((await late).code, "timeout");
  assert.deepEqual(
    w.socket.fresh().map(({ type, room }) => [type, room]),
    [
      ["join", "r"],
      ["leave", "r"],
    ],
  );
  const again = client.join("r");
  await settle();
  await w.socket.receive({ ...JOINED, roomId: "r", id: w.socket.fresh()[0].id });
  assert.equal((await again).joined, true);
  client.close();
});

test("room events reach the room with their envelope, and only the room", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const calls = [];
  room.on("tick", (data, event) => calls.push([data, event]));
  room.once("tick", (data) => calls.push(["once", data]));
  const outside = collect(client, "tick");
  await w.socket.receive(at(1), { type: "typing", room: "r", data: "ann" }, at(2), {
    ...at(3),
    room: "other",
  });
  assert.deepEqual(calls, [
    [1, { type: "tick", room: "r", offset: 1, data: 1 }],
    ["once", 1],
    [2, { type: "tick", room: "r", offset: 2, data: 2 }],
  ]);
  assert.deepEqual(outside, []);
  const typing = collect(room, "typing");
  await w.socket.receive(
    { type: "typing", room: "r", data: "bob" },
    { type: "typing", room: "r", data: "bob" },
  );
  assert.deepEqual(typing, ["bob", "bob"]); // without offset nothing is a duplicate
  client.close();
});

test("events named like the protocol's own words are events", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const names = [
    "error",
    "joined",
    "left",
    "ping",
    "pong",
    "connected",
    "close",
    "state",
    "members",
  ];
  const seen = [];
  for (const name of names) room.on(name, (data) => seen.push([name, data]));
  await w.socket.receive(
    ...names.map((type, i) => ({ type, room: "r", offset: i + 1, data: { roomId: "r" } })),
  );
  assert.deepEqual(
    seen,
    names.map((name) => [name, { roomId: "r" }]),
  );
  assert.equal(room.joined, true);
  client.close();
});

test("what follows `joined` in the same frame waits for the caller's handlers", async () => {
  const w = world();
  const client = await w.connected();
  const seen = [];
  const enter = async () => {
    const room = await client.join("r", { since: position(3) });
    return room;
  };
  const entered = enter().then((room) => room.on("tick", (data) => seen.push(data)));
  await settle();
  const { id, since } = w.socket.fresh()[0];
  assert.deepEqual(since, position(3));
  await w.socket.receive(
    { ...JOINED, roomId: "r", id, position: position(6), recovered: true },
    at(4),
    at(5),
  );
  await entered;
  await w.socket.receive(at(6));
  assert.deepEqual(seen, []);
  await w.timers.advance(0);
  assert.deepEqual(seen, [4, 5, 6]);
  await w.socket.receive(at(7));
  assert.deepEqual(seen, [4, 5, 6, 7]);
  client.close();
});

test("handlers given to join() and onRecent are there from the first event", async () => {
  const w = world();
  const client = await w.connected();
  const seen = [];
  const options = {
    on: { tick: (data) => seen.push(data) },
    onRecent: (messages, room) => seen.push([room.name, messages]),
  };
  await w.joined(client, { recentMessages: ["old"], position: position(2) }, "r", options);
  await w.socket.receive(at(2), at(3));
  assert.deepEqual(seen, [["r", ["old"]], 3]);
  await client.join("r", { onRecent: (messages) => seen.push(["late", messages]) });
  assert.deepEqual(seen.at(-1), ["late", ["old"]]);
  await w.socket.receive({ ...JOINED, roomId: "r", recovered: false, recentMessages: ["new"] });
  assert.deepEqual(seen.slice(-2), [
    ["r", ["new"]],
    ["late", ["new"]],
  ]);
  client.close();
});

test("offsets at or below the position are duplicates; larger ones need not be the next", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client, { position: { epoch: "e", offset: 5, nonce: "n5" } });
  assert.deepEqual(room.position, { epoch: "e", offset: 5, nonce: "n5" });
  const seen = collect(room, "tick");
  await w.socket.receive(at(4), at(5), at(6, { nonce: "n6" }), at(6, { nonce: "n6" }));
  assert.deepEqual(room.position, { epoch: "e", offset: 6, nonce: "n6" });
  await w.socket.receive(at(9), at(8), at(10));
  assert.deepEqual(seen, [6, 9, 10]);
  assert.deepEqual(room.position, position(10)); // a nonce belongs to its own offset
  const reports = await reported(() => w.socket.receive(at("11"), at(1.5), at(11)));
  assert.equal(reports.length, 0);
  assert.deepEqual(seen, [6, 9, 10, 11]);
  client.close();
});

test("after a reconnect the room is joined with its position and what was missed follows", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client, { position: { epoch: "e", offset: 5, nonce: "n5" } });
  const log = [];
  room.on("tick", (data) => log.push(data));
  room.lifecycle.on("recovered", (p) => log.push(["recovered", p.offset]));
  room.lifecycle.on("replaced", () => log.push("replaced"));
  await w.socket.receive(at(6, { nonce: "n6" }));
  await w.socket.drop();
  assert.equal(room.joined, false);
  const socket = await w.comeBack();
  const [join] = socket.fresh();
  assert.deepEqual(join, {
    type: "join",
    room: "r",
    id: join.id,
    since: { epoch: "e", offset: 6, nonce: "n6" },
  });
  await socket.receive(
    { ...JOINED, roomId: "r", id: join.id, position: position(9), recovered: true, members },
    at(6),
    at(7),
    at(8),
    at(9),
    at(10),
  );
  assert.deepEqual(log, [6, ["recovered", 6], 7, 8, 9, 10]);
  assert.deepEqual(room.members, members);
  assert.equal(room.recovered, true);
  client.close();
});

test("when history is out of reach the recent messages replace what there was", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client, { position: position(50) });
  const log = [];
  room.on("tick", (data) => log.push(data));
  room.lifecycle.on("replaced", (messages) => log.push(["replaced", messages]));
  await w.socket.drop();
  const socket = await w.comeBack({ resumed: false });
  const [{ id }] = socket.fresh();
  await socket.receive(
    {
      ...JOINED,
      roomId: "r",
      id,
      position: position(2, "e2"),
      recovered: false,
      recentMessages: ["a", "b"],
    },
    at(2),
    at(3),
  );
  assert.deepEqual(log, [["replaced", ["a", "b"]], 3]);
  assert.deepEqual(room.position, position(3, "e2"));
  // And the server may say so in the middle of a connection.
  await socket.receive(
    {
      ...JOINED,
      roomId: "r",
      id: null,
      position: position(1, "e3"),
      recovered: false,
      recentMessages: ["c"],
    },
    at(2),
  );
  assert.deepEqual(log.slice(2), [["replaced", ["c"]], 2]);
  assert.deepEqual(room.recentMessages, ["c"]);
  client.close();
});

test("a room without history is joined plainly again, and its state replaced", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client, { position: null });
  assert.equal(room.position, null);
  const seen = collect(room, "tick");
  await w.socket.receive({ type: "tick", room: "r", data: 1 });
  const replaced = collect(room.lifecycle, "replaced");
  await w.socket.drop();
  const socket = await w.comeBack();
  const [join] = socket.fresh();
  assert.equal(join.since, undefined);
  await socket.receive({ ...JOINED, roomId: "r", id: join.id, position: null });
  assert.deepEqual([seen, replaced], [[1], [[]]]);
  client.close();
});

test("members follow arrivals, departures and status", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client, { members });
  const seen = collect(room.lifecycle, "members");
  const event = (type, data, offset) => ({ type, room: "r", offset, data });
  await w.socket.receive(
    event("user-joined", { userId: "cy", user: { name: "Cy" }, roomId: "r" }, 1),
    event("user-left", { userId: "bob", roomId: "r" }, 2),
    event("presence-update", { userId: "cy", status: "away", timestamp: 1 }, 3),
    event("presence-update", { userId: "stranger", status: "away", timestamp: 1 }, 4),
    event("user-left", { userId: "stranger", roomId: "r" }, 5),
    event("user-joined", "nonsense", 6),
  );
  assert.deepEqual(room.members, [
    members[0],
    { userId: "cy", user: { name: "Cy" }, status: "away" },
  ]);
  await w.socket.receive({
    type: "presence-update",
    data: { userId: "ann", status: "busy", timestamp: 2 },
  });
  assert.equal(room.members[0].status, "busy");
  assert.deepEqual(
    seen.map((list) => list.length),
    [3, 2, 2, 2],
  );
  client.close();
});

test("members are bounded", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const crowd = Array.from({ length: 10_500 }, (_, n) => ({
    type: "user-joined",
    room: "r",
    offset: n + 1,
    data: { userId: `u${n}`, user: null, roomId: "r" },
  }));
  await w.socket.receive(...crowd);
  assert.equal(room.members.length, 10_000);
  client.close();
});

test("send, broadcast, history and membersPage are addressed to the room", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const answers = [
    room.send("message", { content: "hi" }),
    room.broadcast([1]),
    room.history({ before: 10, limit: 5 }),
    room.history(),
    room.membersPage({ cursor: "c" }),
  ];
  await settle();
  const sent = w.socket.fresh();
  assert.deepEqual(
    sent.map(({ type, room: name, data }) => [type, name, data]),
    [
      ["message", "r", { content: "hi" }],
      ["broadcast", "r", [1]],
      ["history", "r", { before: 10, limit: 5 }],
      ["history", "r", {}],
      ["members", "r", { cursor: "c" }],
    ],
  );
  await w.socket.receive(...sent.map(({ id }, n) => ({ type: "ack", id, data: n })));
  assert.deepEqual(await Promise.all(answers), [0, 1, 2, 3, 4]);
  client.close();
});

test("leave tells the server, silences the room at once, and makes it joinable anew", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const seen = collect(room, "tick");
  const left = collect(room.lifecycle, "left");
  const leaving = room.leave();
  await settle();
  const [message] = w.socket.fresh();
  assert.deepEqual(message, { type: "leave", room: "r", id: message.id });
  await w.socket.receive(at(1), { type: "left", roomId: "r", id: message.id });
  await leaving;
  assert.deepEqual(seen, []);
  assert.equal(left.length, 1);
  for (const call of [room.send("a"), room.broadcast(1), room.history(), room.membersPage()]) {
    assert.equal((await failure(call)).code, "not_in_room");
  }
  await room.leave();
  await client.leave("nowhere");
  assert.notEqual(await w.joined(client), room);
  await w.socket.drop();
  await client.leave("r"); // offline it is simply not joined again
  const socket = await w.comeBack();
  assert.deepEqual(socket.fresh(), []);
  client.close();
});

test("leaving before the join was answered rejects the join", async () => {
  const w = world();
  const client = await w.connected();
  const joining = failure(client.join("r"));
  await settle();
  client.leave("r").catch(() => {});
  assert.equal((await joining).code, "not_in_room");
  await settle();
  const [join] = w.socket.fresh();
  await w.socket.receive({ ...JOINED, roomId: "r", id: join.id });
  assert.equal(client.room("r"), undefined);
  client.close();
});

test("taken out by the server: the room says why and is not joined again", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const left = collect(room.lifecycle, "left");
  await w.socket.receive({ type: "left", roomId: "r", reason: "kicked" });
  assert.equal(left[0].reason, "kicked");
  assert.equal((await failure(room.send("a"))).code, "not_in_room");
  await w.socket.drop();
  assert.deepEqual((await w.comeBack()).fresh(), []);
  client.close();
});

test("a rejoin that is refused is an error on the room, which is dropped with what waited for it", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const errors = collect(room.lifecycle, "error");
  const left = collect(room.lifecycle, "left");
  await w.socket.drop();
  const waiting = failure(room.send("message", 1));
  const socket = await w.comeBack();
  const [{ id }] = socket.fresh();
  await socket.receive({
    type: "error",
    id,
    code: "access_denied",
    error: "Access denied",
    retry: false,
  });
  assert.equal(errors[0].code, "access_denied");
  assert.equal(left.length, 1);
  assert.equal((await waiting).code, "access_denied");
  assert.equal(client.room("r"), undefined);
  await w.timers.advance(8_000);
  assert.deepEqual(socket.fresh(), []);
  client.close();
});

test("a rejoin that may succeed later is tried again, and its messages wait for it", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const errors = collect(room.lifecycle, "error");
  await w.socket.drop();
  failure(room.send("message", 1));
  const socket = await w.comeBack();
  const [{ id }] = socket.fresh();
  await socket.receive({
    type: "error",
    id,
    code: "rate_limited",
    error: "Rate limit exceeded",
    retry: true,
  });
  await w.timers.advance(249);
  assert.deepEqual(socket.fresh(), []);
  await w.timers.advance(1);
  const [again] = socket.fresh();
  assert.equal(again.type, "join");
  await socket.receive({ ...JOINED, roomId: "r", id: again.id });
  assert.deepEqual(
    socket.fresh().map(({ data }) => data),
    [1],
  );
  assert.deepEqual([errors, room.joined], [[], true]);
  client.close();
});

test("a join asked for offline goes out with the connection, before what is addressed to it", async () => {
  const w = world();
  const client = w.create();
  const joining = client.join("r");
  failure(client.send("message", 1, { room: "r" }));
  failure(client.send("other", 2));
  client.connect();
  await settle();
  await w.socket.welcome();
  const [join, other, ...rest] = w.socket.fresh();
  assert.deepEqual([join.type, other.type, rest], ["join", "other", []]);
  await w.socket.receive({ ...JOINED, roomId: "r", id: join.id });
  assert.equal((await joining).joined, true);
  assert.deepEqual(
    w.socket.fresh().map(({ type }) => type),
    ["message"],
  );
  client.close();
});

test("a join whose connection is lost before the answer is asked again", async () => {
  const w = world();
  const client = await w.connected();
  const joining = client.join("r");
  await settle();
  await w.socket.drop();
  const socket = await w.comeBack();
  await socket.receive({ ...JOINED, roomId: "r", id: socket.fresh()[0].id });
  assert.equal((await joining).name, "r");
  client.close();
});

test("closing the client ends its rooms", async () => {
  const w = world();
  const client = await w.connected();
  const room = await w.joined(client);
  const left = collect(room.lifecycle, "left");
  client.close();
  assert.equal(left[0].error.code, "closed");
  assert.equal((await failure(room.send("x"))).code, "not_in_room");
});
