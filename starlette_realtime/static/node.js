/**
 * The client for Node: client.js, with a WebSocket for the versions that bring none (Node 20).
 *
 * NodeWebSocket is the client's half of RFC 6455, without extensions, in the shape of the
 * browser's class. What the peer breaks is answered with the close code the RFC names.
 */
import { Buffer, constants, isUtf8 } from "node:buffer";
import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import https from "node:https";

import * as client from "./client.js";

export { RealtimeError } from "./client.js";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, section 1.3
const MAX_PAYLOAD = 16 * 1024 * 1024;
const MAX_UNSENT_PONG = 1024 * 1024;
const CLOSE_TIMEOUT = 3_000;
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

const CONTINUATION = 0x0;
const TEXT = 0x1;
const BINARY = 0x2;
const CLOSE = 0x8;
const PING = 0x9;
const PONG = 0xa;

/** What the peer did wrong, with the close code that says so. */
class Violation extends Error {
  /** @param {number} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** @param {number} code */
const mayBeReceived = (code) =>
  (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) ||
  (code >= 3000 && code <= 4999);

/** Frames out of a stream of chunks; the bytes are joined only once a whole frame is there. */
class FrameReader {
  /** @type {Buffer[]} */
  #chunks = [];
  #length = 0;
  #maxPayload;

  /** @param {number} maxPayload bytes */
  constructor(maxPayload) {
    this.#maxPayload = maxPayload;
  }

  /** @param {Buffer} chunk */
  push(chunk) {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /** @returns {{ fin: boolean, opcode: number, payload: Buffer } | null} null when more bytes are needed */
  next() {
    const head = this.#peek(10);
    if (head.length < 2) return null;
    const first = head.readUInt8(0);
    const second = head.readUInt8(1);
    const opcode = first & 0x0f;
    const fin = (first & 0x80) !== 0;
    if ((first & 0x70) !== 0) throw new Violation(1002, "reserved bits are set");
    if (![CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG].includes(opcode)) {
      throw new Violation(1002, "unknown opcode");
    }
    if ((second & 0x80) !== 0) throw new Violation(1002, "a server does not mask");
    let length = second & 0x7f;
    if (opcode >= CLOSE && (!fin || length > 125)) throw new Violation(1002, "bad control frame");
    const header = length === 127 ? 10 : length === 126 ? 4 : 2;
    if (head.length < header) return null;
    if (header === 4) length = head.readUInt16BE(2);
    if (header === 10) length = Number(head.readBigUInt64BE(2));
    if ((header === 4 && length < 126) || (header === 10 && length < 0x10000)) {
      throw new Violation(1002, "the length is not written shortest");
    }
    if (length > this.#maxPayload) throw new Violation(1009, "frame too large");
    if (this.#length < header + length) return null;
    this.#take(header);
    return { fin, opcode, payload: this.#take(length) };
  }

  /** @param {number} size */
  #peek(size) {
    const [first] = this.#chunks;
    if (first && (first.length >= size || this.#chunks.length === 1))
      return first.subarray(0, size);
    const parts = [];
    let length = 0;
    for (const chunk of this.#chunks) {
      if (length >= size) break;
      parts.push(chunk.subarray(0, size - length));
      length += chunk.length;
    }
    return Buffer.concat(parts);
  }

  /** @param {number} size no more than there is */
  #take(size) {
    /** @type {Buffer[]} */
    const parts = [];
    let missing = size;
    let used = 0;
    for (; missing > 0; used++) {
      const chunk = /** @type {Buffer} */ (this.#chunks[used]);
      parts.push(chunk.subarray(0, missing));
      if (chunk.length > missing) {
        this.#chunks[used] = chunk.subarray(missing);
        break;
      }
      missing -= chunk.length;
    }
    this.#chunks.splice(0, used);
    this.#length -= size;
    return parts.length === 1 ? /** @type {Buffer} */ (parts[0]) : Buffer.concat(parts, size);
  }
}

/** The standard's WebSocket as far as the client uses it. */
export class NodeWebSocket {
  binaryType = "arraybuffer";
  protocol = "";
  readyState = 0;
  /** @type {((event: any) => void) | null} */
  onopen = null;
  /** @type {((event: any) => void) | null} */
  onmessage = null;
  /** @type {((event: any) => void) | null} */
  onclose = null;
  /** @type {((event: any) => void) | null} */
  onerror = null;

  #request;
  /** @type {import("node:stream").Duplex | null} */
  #stream = null;
  #reader;
  #maxPayload;
  #closeTimeout;
  /** @type {{ opcode: number, bytes: Buffer, length: number } | null} */
  #message = null;
  #closeSent = false;
  /** @type {{ code: number, reason: string } | null} */
  #goodbye = null;
  /** @type {NodeJS.Timeout | undefined} */
  #timer;

  /**
   * @param {string | URL} url ws: or wss:
   * @param {string | string[]} [protocols]
   * @param {{ maxPayload?: number, closeTimeout?: number, request?: https.RequestOptions }} [options]
   *   the largest message in bytes, ms to wait for the peer's close, and what `https.request`
   *   takes besides (headers, ca)
   */
  constructor(
    url,
    protocols = [],
    { maxPayload = MAX_PAYLOAD, closeTimeout = CLOSE_TIMEOUT, request = {} } = {},
  ) {
    const { protocol, href } = new URL(url);
    if (protocol !== "ws:" && protocol !== "wss:")
      throw new SyntaxError(`not a WebSocket URL: ${url}`);
    const offered = [protocols].flat();
    if (new Set(offered).size < offered.length || !offered.every((name) => TOKEN.test(name))) {
      throw new SyntaxError("a subprotocol is a token and is offered once");
    }
    this.#maxPayload = Math.min(maxPayload, constants.MAX_STRING_LENGTH);
    this.#closeTimeout = closeTimeout;
    this.#reader = new FrameReader(this.#maxPayload);
    const key = randomBytes(16).toString("base64");
    this.#request = (protocol === "ws:" ? http : https).request(href.replace(/^ws/, "http"), {
      ...request,
      agent: false,
      headers: {
        ...request.headers,
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        ...(offered.length > 0 && { "Sec-WebSocket-Protocol": offered.join(", ") }),
      },
    });
    this.#request.on("error", (error) => this.#fail(1006, error.message));
    this.#request.on("response", (response) => {
      this.#fail(1006, `HTTP ${response.statusCode}`);
      response.destroy();
    });
    this.#request.on("upgrade", (response, stream, head) => {
      const wrong = this.#objection(response, key, offered);
      stream.on("error", (error) => this.#fail(1006, error.message));
      if (wrong || this.readyState !== 0) {
        stream.destroy();
        return this.#fail(1006, wrong ?? "closed before it opened");
      }
      this.protocol = response.headers["sec-websocket-protocol"] ?? "";
      this.#open(stream, head);
    });
    this.#request.end();
  }

  get bufferedAmount() {
    return this.#stream?.writableLength ?? 0;
  }

  /** @param {string | ArrayBufferView | ArrayBuffer} data */
  send(data) {
    if (this.readyState === 0) throw new Error("not open yet");
    if (this.readyState !== 1) return;
    if (typeof data === "string") this.#write(TEXT, Buffer.from(data));
    else if (data instanceof ArrayBuffer) this.#write(BINARY, Buffer.from(data));
    else this.#write(BINARY, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  }

  /** @param {number} [code] 1000 or 3000 to 4999 @param {string} [reason] at most 123 bytes */
  close(code, reason = "") {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new RangeError("a close code is 1000 or 3000 to 4999");
    }
    if (Buffer.byteLength(reason) > 123) throw new RangeError("the reason is too long");
    if (this.readyState >= 2) return;
    if (this.readyState === 0) return this.#fail(1006, "closed before it opened");
    this.readyState = 2;
    this.#sayGoodbye(code, reason);
  }

  /**
   * RFC 6455, section 4.1: what a server may have got wrong in its answer.
   * @param {http.IncomingMessage} response @param {string} key @param {string[]} offered
   */
  #objection({ statusCode, headers }, key, offered) {
    const accept = createHash("sha1")
      .update(key + GUID)
      .digest("base64");
    const chosen = headers["sec-websocket-protocol"];
    if (statusCode !== 101) return `HTTP ${statusCode}`;
    if (headers.upgrade?.toLowerCase() !== "websocket") return "not an upgrade to websocket";
    if (!/(^|,)\s*upgrade\s*(,|$)/i.test(headers.connection ?? "")) return "no Connection: Upgrade";
    if (headers["sec-websocket-accept"]?.trim() !== accept) return "wrong Sec-WebSocket-Accept";
    if (headers["sec-websocket-extensions"]) return "an extension nobody offered";
    if (chosen !== undefined && !offered.includes(chosen)) return "a subprotocol nobody offered";
    return null;
  }

  /** @param {import("node:stream").Duplex} stream @param {Buffer} head */
  #open(stream, head) {
    this.#stream = stream;
    this.readyState = 1;
    /** @type {import("node:net").Socket} */ (stream).setNoDelay?.(true);
    /** @type {import("node:net").Socket} */ (stream).setTimeout?.(0);
    this.onopen?.({ type: "open" });
    stream.on("data", (chunk) => this.#read(chunk));
    stream.on("end", () => this.#finish());
    stream.on("close", () => this.#finish());
    if (head.length > 0) this.#read(head);
  }

  /** @param {Buffer} chunk */
  #read(chunk) {
    if (this.#goodbye || this.readyState === 3) return;
    try {
      this.#reader.push(chunk);
      for (let frame = this.#reader.next(); frame && !this.#goodbye; frame = this.#reader.next()) {
        this.#take(frame);
      }
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      // Abnormal for the caller whatever the peer is told: a 1009 would mean its own frames.
      this.#goodbye = { code: 1006, reason: error.message };
      this.readyState = 2;
      this.#sayGoodbye(error.code, error.message);
      this.#stream?.end();
    }
  }

  /** @param {{ fin: boolean, opcode: number, payload: Buffer }} frame */
  #take({ fin, opcode, payload }) {
    if (opcode === PING) {
      // A peer that only asks and never reads shall not fill the memory with answers.
      if (!this.#closeSent && this.bufferedAmount < MAX_UNSENT_PONG) this.#write(PONG, payload);
    } else if (opcode === CLOSE) {
      this.#takeGoodbye(payload);
    } else if (opcode !== PONG) {
      if ((opcode === CONTINUATION) !== (this.#message !== null)) {
        throw new Violation(1002, "fragments out of order");
      }
      if (opcode !== CONTINUATION && fin) return this.#deliver(opcode, payload);
      const message = (this.#message ??= { opcode, bytes: Buffer.alloc(0), length: 0 });
      if (message.length + payload.length > this.#maxPayload) {
        throw new Violation(1009, "message too large");
      }
      // One buffer that doubles: fragments of a byte each must not become objects each.
      if (message.length + payload.length > message.bytes.length) {
        const grown = Buffer.alloc(Math.max(1024, 2 * (message.length + payload.length)));
        message.bytes.copy(grown, 0, 0, message.length);
        message.bytes = grown;
      }
      message.length += payload.copy(message.bytes, message.length);
      if (!fin) return;
      this.#message = null;
      this.#deliver(message.opcode, message.bytes.subarray(0, message.length));
    }
  }

  /** @param {number} opcode @param {Buffer} bytes */
  #deliver(opcode, bytes) {
    if (opcode === TEXT && !isUtf8(bytes)) throw new Violation(1007, "text that is not UTF-8");
    if (this.readyState !== 1) return;
    const data =
      opcode === TEXT
        ? bytes.toString()
        : bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    this.onmessage?.({ type: "message", data });
  }

  /** @param {Buffer} payload */
  #takeGoodbye(payload) {
    const code = payload.length === 0 ? 1005 : payload.length === 1 ? 0 : payload.readUInt16BE(0);
    const reason = payload.subarray(2);
    if (payload.length > 0 && !mayBeReceived(code)) throw new Violation(1002, "bad close code");
    if (!isUtf8(reason)) throw new Violation(1007, "a reason that is not UTF-8");
    this.#goodbye = { code, reason: reason.toString() };
    this.readyState = 2;
    this.#sayGoodbye(code === 1005 ? undefined : code, "");
    this.#stream?.end();
  }

  /** @param {number | undefined} code @param {string} reason */
  #sayGoodbye(code, reason) {
    if (!this.#closeSent) {
      const payload = Buffer.alloc(code === undefined ? 0 : 2 + Buffer.byteLength(reason));
      if (code !== undefined) {
        payload.writeUInt16BE(code, 0);
        payload.write(reason, 2);
      }
      this.#write(CLOSE, payload);
      this.#closeSent = true;
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#finish(), this.#closeTimeout);
  }

  /** @param {number} opcode @param {Buffer} payload */
  #write(opcode, payload) {
    const { length } = payload;
    const extra = length < 126 ? 0 : length < 0x10000 ? 2 : 8;
    const frame = Buffer.allocUnsafe(6 + extra + length);
    frame[0] = 0x80 | opcode;
    frame[1] = 0x80 | (extra === 0 ? length : extra === 2 ? 126 : 127);
    if (extra === 2) frame.writeUInt16BE(length, 2);
    if (extra === 8) frame.writeBigUInt64BE(BigInt(length), 2);
    const mask = randomBytes(4);
    mask.copy(frame, 2 + extra);
    const start = 6 + extra;
    for (let i = 0; i < length; i++) {
      frame[start + i] = /** @type {number} */ (payload[i]) ^ /** @type {number} */ (mask[i & 3]);
    }
    if (this.#stream?.writable) this.#stream.write(frame);
  }

  /** @param {number} code @param {string} reason */
  #fail(code, reason) {
    if (this.readyState === 3) return;
    this.#goodbye ??= { code, reason };
    this.#finish(true);
  }

  #finish(error = false) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    clearTimeout(this.#timer);
    this.#request.destroy();
    this.#stream?.destroy();
    const { code, reason } = this.#goodbye ?? { code: 1006, reason: "" };
    // Later, as in a browser: nobody could listen yet while the constructor runs.
    queueMicrotask(() => {
      if (error) this.onerror?.({ type: "error" });
      this.onclose?.({ type: "close", code, reason, wasClean: code !== 1006 });
    });
  }
}

/** @type {typeof client.createClient} */
export const createClient = (url, options = {}) =>
  client.createClient(url, {
    ...options,
    WebSocket: options.WebSocket ?? globalThis.WebSocket ?? NodeWebSocket,
  });

/** @type {typeof client.connect} */
export const connect = async (url, options = {}) =>
  /** @type {any} */ (createClient(url, options).connect());
