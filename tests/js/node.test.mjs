import assert from "node:assert/strict";
import { test } from "node:test";

import * as base from "../../starlette_realtime/static/client.js";
import {
  connect,
  createClient,
  NodeWebSocket,
  RealtimeError,
} from "../../starlette_realtime/static/node.js";
import { certificate } from "./helpers/certificate.mjs";
import { CONNECTED } from "./helpers/fakes.mjs";
import { closeFrame, frame, OPCODE, serve } from "./helpers/ws_server.mjs";

/** Runs `fn` with a server that is gone afterwards whatever happened. */
async function withServer(options, fn) {
  const server = await serve(options);
  try {
    await fn(server);
  } finally {
    await server.stop();
  }
}

/** A socket whose events can be awaited. */
function open(url, protocols, options) {
  const socket = new NodeWebSocket(url, protocols, options);
  const messages = [];
  const waiting = [];
  socket.onmessage = ({ data }) => {
    messages.push(data);
    for (const resolve of waiting.splice(0)) resolve();
  };
  return {
    socket,
    messages,
    opened: new Promise((resolve) => (socket.onopen = resolve)),
    closed: new Promise((resolve) => (socket.onclose = resolve)),
    async message(n = 0) {
      while (messages.length <= n) await new Promise((resolve) => waiting.push(resolve));
      return messages[n];
    },
  };
}

async function pair(server, options) {
  const it = open(server.url, ["realtime.v1"], options);
  await it.opened;
  return { ...it, peer: await server.peer() };
}

test("the handshake asks as the RFC says", () =>
  withServer({ protocol: "realtime.v1" }, async (server) => {
    const it = open(`${server.url}/realtime/ws?hello=1`, ["realtime.v1", "other"]);
    await it.opened;
    const { request } = await server.peer();
    assert.equal(request.url, "/realtime/ws?hello=1");
    assert.equal(request.headers.upgrade, "websocket");
    assert.equal(request.headers["sec-websocket-version"], "13");
    assert.equal(Buffer.from(request.headers["sec-websocket-key"], "base64").length, 16);
    assert.equal(request.headers["sec-websocket-protocol"], "realtime.v1, other");
    assert.deepEqual([it.socket.protocol, it.socket.readyState], ["realtime.v1", 1]);
  }));

const good = (accept, more = []) => [
  "HTTP/1.1 101 Switching Protocols",
  "Upgrade: websocket",
  "Connection: Upgrade",
  `Sec-WebSocket-Accept: ${accept}`,
  ...more,
];
for (const [name, answer] of Object.entries({
  "HTTP 403": () => ["HTTP/1.1 403 Forbidden", "Content-Length: 0"],
  "HTTP 200": () => ["HTTP/1.1 200 OK", "Content-Length: 0"],
  "a wrong accept": () => good("AAAA"),
  "no accept": (_, accept) => good(accept).slice(0, 3),
  "another upgrade": (_, accept) => good(accept).with(1, "Upgrade: h2c"),
  "no connection header": (_, accept) => good(accept).with(2, "X-Nothing: 1"),
  "a subprotocol nobody offered": (_, accept) => good(accept, ["Sec-WebSocket-Protocol: evil"]),
  "an extension nobody offered": (_, accept) =>
    good(accept, ["Sec-WebSocket-Extensions: permessage-deflate"]),
})) {
  test(`an answer with ${name} is refused`, () =>
    withServer({ answer }, async (server) => {
      const it = open(server.url, ["realtime.v1"]);
      it.socket.onopen = () => assert.fail("it opened");
      const { code, reason } = await it.closed;
      assert.equal(code, 1006);
      assert.notEqual(reason, "");
      if (name.startsWith("HTTP")) assert.equal(reason, name);
    }));
}

test("nobody there is a close, not an exception", async () => {
  const server = await serve();
  await server.stop();
  assert.equal((await open(server.url).closed).code, 1006);
});

test("what was wrong before anything was sent throws", () => {
  assert.throws(() => new NodeWebSocket("http://host"), SyntaxError);
  assert.throws(() => new NodeWebSocket("ws://host", ["a b"]), SyntaxError);
  assert.throws(() => new NodeWebSocket("ws://host", ["a", "a"]), SyntaxError);
});

test("frames are masked, each with a mask of its own, at every length", () =>
  withServer({}, async (server) => {
    const { socket, peer } = await pair(server);
    const masks = new Set();
    for (const size of [0, 1, 125, 126, 65_535, 65_536, 300_000]) {
      const text = "ü".repeat(size >> 1) + "x".repeat(size & 1);
      socket.send(text);
      const { fin, opcode, masked, mask, payload } = await peer.next();
      assert.deepEqual(
        [fin, opcode, masked, payload.toString() === text],
        [true, OPCODE.text, true, true],
      );
      masks.add(mask.toString("hex"));
    }
    assert.equal(masks.size, 7);
    socket.send(new Uint8Array([1, 2, 3]));
    socket.send(new Uint8Array([4]).buffer);
    assert.deepEqual([...(await peer.next()).payload], [1, 2, 3]);
    assert.deepEqual([...(await peer.next()).payload], [4]);
    socket.close();
  }));

test("messages arrive whole: fragments, pings in between, bytes one by one", () =>
  withServer({}, async (server) => {
    const { message, peer, socket } = await pair(server);
    const euro = Buffer.from("1€2");
    const bytes = Buffer.concat([
      frame(OPCODE.text, euro.subarray(0, 2), { fin: false }),
      frame(OPCODE.ping, "are you there"),
      frame(OPCODE.continuation, "", { fin: false }),
      frame(OPCODE.continuation, euro.subarray(2, 3), { fin: false }),
      frame(OPCODE.continuation, euro.subarray(3)),
      frame(OPCODE.text, "x".repeat(300)),
      frame(OPCODE.pong, "unasked"),
      frame(OPCODE.binary, Buffer.from([1, 2, 3])),
      frame(OPCODE.text, "y".repeat(70_000)),
    ]);
    peer.socket.setNoDelay(true);
    for (let i = 0; i < 400; i++) peer.write(bytes.subarray(i, i + 1));
    peer.write(bytes.subarray(400));
    assert.equal(await message(0), "1€2");
    const pong = await peer.next();
    assert.deepEqual(
      [pong.opcode, pong.masked, pong.payload.toString()],
      [OPCODE.pong, true, "are you there"],
    );
    assert.equal(await message(1), "x".repeat(300));
    assert.deepEqual(await message(2), new Uint8Array([1, 2, 3]).buffer);
    assert.equal(await message(3), "y".repeat(70_000));
    socket.close();
  }));

test("a message in the same packet as the handshake is not lost", () =>
  withServer({ early: frame(OPCODE.text, "early") }, async (server) => {
    const it = open(server.url);
    assert.equal(await it.message(), "early");
    it.socket.close();
  }));

for (const [name, bytes, code] of [
  ["a masked frame", frame(OPCODE.text, "x", { mask: true }), 1002],
  ["reserved bits", frame(OPCODE.text, "x", { rsv: 4 }), 1002],
  ["an unknown opcode", frame(3, "x"), 1002],
  ["a continuation of nothing", frame(OPCODE.continuation, "x"), 1002],
  [
    "a new message within another",
    Buffer.concat([frame(OPCODE.text, "x", { fin: false }), frame(OPCODE.text, "y")]),
    1002,
  ],
  ["a fragmented ping", frame(OPCODE.ping, "", { fin: false }), 1002],
  ["a long ping", frame(OPCODE.ping, "x".repeat(126)), 1002],
  ["a length in too many bytes", frame(OPCODE.text, "x", { form: 16 }), 1002],
  ["a length in far too many bytes", frame(OPCODE.text, "x", { form: 64 }), 1002],
  ["text that is not UTF-8", frame(OPCODE.text, Buffer.from([0xc3, 0x28])), 1007],
  ["a close code that may not be sent", closeFrame(1005), 1002],
  ["half a close code", frame(OPCODE.close, "x"), 1002],
  ["a reason that is not UTF-8", frame(OPCODE.close, Buffer.from([3, 232, 0xff])), 1007],
  ["a frame that is too large", frame(OPCODE.text, "", { length: 1_001, form: 16 }), 1009],
  ["a frame of 2^63 bytes", frame(OPCODE.text, "", { length: 2n ** 63n, form: 64 }), 1009],
  [
    "a message too large in fragments",
    Buffer.concat([
      frame(OPCODE.text, "x".repeat(600), { fin: false }),
      frame(OPCODE.continuation, "x".repeat(600)),
    ]),
    1009,
  ],
]) {
  test(`${name} ends the connection with ${code}`, () =>
    withServer({}, async (server) => {
      const { closed, messages, peer } = await pair(server, { maxPayload: 1_000 });
      peer.write(bytes, frame(OPCODE.text, "after"));
      const goodbye = await peer.next();
      assert.deepEqual([goodbye.opcode, goodbye.payload.readUInt16BE(0)], [OPCODE.close, code]);
      peer.socket.end();
      assert.equal((await closed).code, 1006);
      assert.deepEqual(messages, []);
    }));
}

test("many small fragments cost no more than their bytes", () =>
  withServer({}, async (server) => {
    const { message, peer, socket } = await pair(server);
    const parts = [frame(OPCODE.text, "x", { fin: false })];
    for (let i = 0; i < 20_000; i++)
      parts.push(frame(OPCODE.continuation, i % 2 ? "x" : "", { fin: false }));
    peer.write(...parts, frame(OPCODE.continuation, "!"));
    assert.equal(await message(), `${"x".repeat(10_001)}!`);
    socket.close();
  }));

test("the server closes: the code and reason arrive and are echoed", () =>
  withServer({}, async (server) => {
    const { closed, peer, socket } = await pair(server);
    peer.write(closeFrame(4512, "1500"));
    const echo = await peer.next();
    assert.deepEqual([echo.opcode, echo.payload.readUInt16BE(0)], [OPCODE.close, 4512]);
    peer.socket.end();
    const { code, reason, wasClean } = await closed;
    assert.deepEqual([code, reason, wasClean, socket.readyState], [4512, "1500", true, 3]);
    socket.send("into the void");
  }));

test("a close without a code is 1005; an end without a close 1006", () =>
  withServer({}, async (server) => {
    const first = await pair(server);
    first.peer.write(frame(OPCODE.close));
    assert.equal((await first.peer.next()).payload.length, 0);
    assert.equal((await first.closed).code, 1005);
    const second = open(server.url);
    await second.opened;
    (await server.peer(1)).socket.destroy();
    assert.deepEqual([(await second.closed).code, second.socket.readyState], [1006, 3]);
  }));

test("close() says goodbye and waits for the answer, but not for ever", () =>
  withServer({}, async (server) => {
    const polite = await pair(server);
    assert.throws(() => polite.socket.close(1006), RangeError);
    assert.throws(() => polite.socket.close(1000, "x".repeat(124)), RangeError);
    polite.socket.close(4000, "bye");
    assert.equal(polite.socket.readyState, 2);
    const goodbye = await polite.peer.next();
    assert.deepEqual(
      [goodbye.payload.readUInt16BE(0), goodbye.payload.toString("utf8", 2)],
      [4000, "bye"],
    );
    polite.peer.write(closeFrame(4000));
    assert.equal((await polite.closed).code, 4000);

    const rude = open(server.url, [], { closeTimeout: 1 });
    await rude.opened;
    rude.socket.close();
    assert.equal((await rude.closed).code, 1006);

    const hasty = open(server.url);
    hasty.socket.close();
    assert.equal((await hasty.closed).code, 1006);
  }));

test("TLS checks the certificate", async (t) => {
  const tls = certificate();
  if (!tls) return t.skip("openssl is not installed");
  await withServer({ tls }, async (server) => {
    assert.equal((await open(server.url).closed).code, 1006);
    const trusted = open(server.url, [], { request: { ca: tls.cert } });
    await trusted.opened;
    trusted.socket.close();
  });
});

test("connect() of the Node entry speaks the protocol over it, and comes back", () =>
  withServer({ protocol: "realtime.v2" }, async (server) => {
    const native = globalThis.WebSocket;
    delete globalThis.WebSocket; // newer versions of Node have one
    try {
      const connecting = connect(`${server.url}/realtime`, {
        auth: "t",
        deviceId: "d1",
        random: () => 0,
      });
      const peer = await server.peer();
      assert.deepEqual(await peer.messages(), [
        { type: "connect", data: { token: "t", deviceId: "d1" } },
      ]);
      peer.text(CONNECTED);
      const client = await connecting;
      const answer = Promise.all([client.send("a", new Uint8Array([7])), client.send("b")]);
      const [a, b] = await peer.messages();
      assert.deepEqual(a.data, { $bytes: "Bw==" });
      peer.text(
        `${JSON.stringify({ type: "ack", id: a.id, data: 1 })}\n${JSON.stringify({ type: "ack", id: b.id, data: 2 })}`,
      );
      assert.deepEqual(await answer, [1, 2]);
      peer.write(closeFrame(1012, "restart"));
      const next = await server.peer(1);
      assert.deepEqual((await next.messages())[0].data, {
        token: "t",
        resume: "token-1",
        deviceId: "d1",
      });
      assert.deepEqual(client.closeReason, { code: 1012, reason: "restart", willReconnect: true });
      next.text({ ...CONNECTED, resumed: true });
      await client.connect();
      client.close();
      assert.equal((await next.next()).opcode, OPCODE.close);
    } finally {
      if (native) globalThis.WebSocket = native;
    }
  }));

test("the Node entry prefers the platform's WebSocket, and the caller's to both", async () => {
  const native = globalThis.WebSocket;
  const used = [];
  const spy = (name) =>
    class {
      constructor() {
        used.push(name);
        throw new Error("enough");
      }
    };
  globalThis.WebSocket = spy("platform");
  try {
    await assert.rejects(connect("ws://host/x"), RealtimeError);
    await assert.rejects(
      createClient("ws://host/x", { WebSocket: spy("given") }).connect(),
      RealtimeError,
    );
  } finally {
    if (native) globalThis.WebSocket = native;
    else delete globalThis.WebSocket;
  }
  assert.deepEqual(used, ["platform", "given"]);
  assert.equal(RealtimeError, base.RealtimeError);
  if (!native) assert.throws(() => base.createClient("ws://host/x"), /WebSocket/);
});
