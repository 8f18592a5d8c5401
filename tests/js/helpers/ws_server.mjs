/**
 * The server's half of RFC 6455, byte by byte, so that a test can also break every rule of it.
 */
import { createHash } from "node:crypto";
import http from "node:http";
import https from "node:https";
import { once } from "node:events";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };

/** One frame as a server writes it; everything can be overridden. */
export function frame(
  opcode,
  payload = "",
  { fin = true, rsv = 0, mask = false, length, form } = {},
) {
  const body = Buffer.from(payload);
  const size = length ?? body.length;
  const bits = form ?? (size < 126 ? 7 : size < 0x10000 ? 16 : 64);
  const head = Buffer.alloc(bits === 7 ? 2 : bits === 16 ? 4 : 10);
  head[0] = (fin ? 0x80 : 0) | (rsv << 4) | opcode;
  head[1] = (mask ? 0x80 : 0) | (bits === 7 ? size : bits === 16 ? 126 : 127);
  if (bits === 16) head.writeUInt16BE(size, 2);
  if (bits === 64) head.writeBigUInt64BE(BigInt(size), 2);
  return Buffer.concat([head, ...(mask ? [Buffer.alloc(4)] : []), body]);
}

export const closeFrame = (code, reason = "") => {
  const payload = Buffer.alloc(2);
  payload.writeUInt16BE(code);
  return frame(OPCODE.close, Buffer.concat([payload, Buffer.from(reason)]));
};

/** A connection as the server sees it: frames that arrived, and bytes to write. */
class Peer {
  frames = [];
  ended = false;
  #bytes = Buffer.alloc(0);
  #waiting = [];

  constructor(request, socket, head) {
    this.request = request;
    this.socket = socket;
    socket.on("error", () => {});
    socket.on("data", (chunk) => this.#read(chunk));
    socket.on("end", () => socket.end());
    socket.on("close", () => {
      this.ended = true;
      this.#wake();
    });
    if (head.length) this.#read(head);
  }

  write(...parts) {
    this.socket.write(Buffer.concat(parts));
  }

  text(value) {
    this.write(frame(OPCODE.text, typeof value === "string" ? value : JSON.stringify(value)));
  }

  /** The next frame, or null at the end of the connection. */
  async next() {
    while (this.frames.length === 0 && !this.ended) {
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    return this.frames.shift() ?? null;
  }

  /** The next frame as JSON objects. */
  async messages() {
    const { payload } = await this.next();
    return payload
      .toString()
      .split("\n")
      .map((line) => JSON.parse(line));
  }

  #read(chunk) {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    for (;;) {
      const bytes = this.#bytes;
      if (bytes.length < 2) break;
      let length = bytes[1] & 0x7f;
      let at = 2;
      if (length === 126)
        [length, at] = bytes.length < 4 ? [Infinity, 4] : [bytes.readUInt16BE(2), 4];
      else if (length === 127)
        [length, at] = bytes.length < 10 ? [Infinity, 10] : [Number(bytes.readBigUInt64BE(2)), 10];
      if (bytes.length < at + 4 + length) break;
      const mask = bytes.subarray(at, at + 4);
      const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + length)).map(
        (byte, i) => byte ^ mask[i & 3],
      );
      this.frames.push({
        fin: (bytes[0] & 0x80) !== 0,
        opcode: bytes[0] & 0x0f,
        masked: (bytes[1] & 0x80) !== 0,
        mask: Buffer.from(mask),
        payload: Buffer.from(payload),
      });
      this.#bytes = bytes.subarray(at + 4 + length);
    }
    this.#wake();
  }

  #wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/**
 * @param {object} options `answer(request, socket, accept)` replaces the handshake; `protocol` is
 * what the server selects; `early` follows the handshake in the same write; `tls` is a key and
 * a certificate.
 */
export async function serve({ answer, protocol, early = "", tls } = {}) {
  const server = tls ? https.createServer(tls) : http.createServer();
  const peers = [];
  const sockets = new Set();
  const waiting = [];
  server.on(tls ? "secureConnection" : "connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {});
  });
  server.on("upgrade", (request, socket, head) => {
    const accept = createHash("sha1")
      .update(request.headers["sec-websocket-key"] + GUID)
      .digest("base64");
    if (answer) {
      const lines = answer(request, accept);
      socket.write(`${lines.join("\r\n")}\r\n\r\n`);
    } else {
      const chosen = protocol ? `Sec-WebSocket-Protocol: ${protocol}\r\n` : "";
      const handshake =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n" +
        `Sec-WebSocket-Accept: ${accept}\r\n${chosen}\r\n`;
      socket.write(Buffer.concat([Buffer.from(handshake), Buffer.from(early)]));
    }
    const peer = new Peer(request, socket, head);
    peers.push(peer);
    for (const resolve of waiting.splice(0)) resolve();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `${tls ? "wss" : "ws"}://127.0.0.1:${server.address().port}`,
    peers,
    async peer(n = 0) {
      while (peers.length <= n) await new Promise((resolve) => waiting.push(resolve));
      return peers[n];
    },
    async stop() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
