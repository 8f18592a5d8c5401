/**
 * starlette-realtime: the client for browsers and Node, in one module without dependencies.
 *
 * It speaks the native protocol (docs/protocol.md) and reads downwards: words (errors, payloads,
 * bytes) · Emitter, Listener, Backoff · Outbox (what waits) · Connection (one socket, from hello
 * to its end) · Core (which connection, when the next) · Room · Inbox · Namespace · Client.
 * Methods named by a symbol are spoken between these classes only.
 *
 * @import * as api from "./client.d.ts"
 */

/** The newest first: an older server selects the one it knows. */
const SUBPROTOCOLS = ["realtime.v2", "realtime.v1"];
const MAX_OBJECTS = 256; // in one frame, by the protocol
const MAX_DEPTH = 64; // nesting levels of a frame, by the protocol
const MAX_MEMBERS = 10_000; // of one room that are kept in memory
const MAX_HANDLERS = 10_000; // of one emitter
const MAX_LETTERS = 2_000; // private messages known by id, or waiting: more than a server keeps
const MAX_WATCHED = 100; // users in one message, by the protocol
const DEVICE_KEY = "starlette-realtime.device"; // in localStorage
const MAX_TIMER = 2 ** 31 - 1; // a longer setTimeout would fire at once
const MAX_DRAIN_DELAY = 300_000; // ms; a reason beyond it is taken for this
const STABLE_AFTER = 5_000; // ms of connection that make the backoff start over
const PROBE_TIMEOUT = 5_000; // ms for an answer when the page woke up or lost its network
const WINDOW = 64; // messages that may be unanswered at a time, below what a server calls abuse
const MAX_ANSWERS = 1_000; // to the server's questions, in case they come again
const MAX_ANSWER_BYTES = 4_000_000; // of these together
const RATE_PAUSE = 1_000; // ms without messages after the server refused one as too many

const DEFAULTS = Object.freeze({
  timeout: 10_000,
  connectTimeout: 10_000,
  giveUpAfter: 30_000,
  maxTries: Infinity,
  backoffBase: 500,
  backoffCap: 30_000,
  maxQueue: 1_000,
  maxQueueBytes: 16_000_000,
  random: Math.random,
  timers: Object.freeze({
    /** @type {(fn: () => void, ms: number) => unknown} */
    setTimeout: (fn, ms) => setTimeout(fn, ms),
    /** @type {(timer: any) => void} */
    clearTimeout: (timer) => clearTimeout(timer),
    now: () => performance.now(),
  }),
});

/** A command belongs to its connection; a question waits for the next one. */
const COMMAND = Object.freeze({ wantsReply: true, durable: false });
const QUESTION = Object.freeze({ wantsReply: true, durable: true });

const EMIT = Symbol("emit");
const HEAR = Symbol("hear");
const RECEIVE = Symbol("receive");
const ENTER = Symbol("enter");
const OPENED = Symbol("opened");
const START = Symbol("start");
const REFUSED = Symbol("refused");
const LOST = Symbol("lost");
const END = Symbol("end");
const IS_OPEN = Symbol("is open");
const ON_RECENT = Symbol("on recent");
const REPLACED = Symbol("replaced");
const PRESENCE = Symbol("presence");
const DROP = Symbol("drop");

/** @typedef {{ [member: string]: any }} Message an object on the wire */
/** @typedef {{ text: string, bytes: number }} Wire a message as it is sent, and its size in UTF-8 */
/**
 * @typedef {object} Ears what a connection tells
 * @property {(message: Message) => void} message
 * @property {(cause: unknown) => void} malformed
 * @property {(code: number, reason: string) => void} end called once
 */
/** @typedef {(error: RealtimeError | null, value?: any) => void} Done */
/**
 * @typedef {object} Entry a message that waits for the socket, for its answer, or for both
 * @property {number} id
 * @property {Namespace} ns
 * @property {string | undefined} room
 * @property {string} text as it goes on the wire
 * @property {number} bytes of `text` in UTF-8
 * @property {boolean} wantsReply
 * @property {boolean} durable it outlives its connection
 * @property {number} timeout ms for the answer, counted while a connection carries it
 * @property {Done} done the first call counts
 * @property {boolean} [live] this connection carries it
 * @property {unknown} [timer]
 */
/**
 * @typedef {object} Question what the server asked, perhaps several times
 * @property {unknown} on the connection that brought it last
 * @property {Wire | null} reply
 */
/**
 * @typedef {object} How
 * @property {boolean} wantsReply
 * @property {boolean} durable it waits for a connection, and is sent again after a loss
 * @property {string} [gate] the room that must have been joined before it goes
 * @property {number} [timeout] ms
 */
/**
 * @typedef {object} Attempt
 * @property {Connection | null} connection
 * @property {boolean} welcomed
 * @property {RealtimeError | null} refusal the error that came before the close
 * @property {unknown} timer
 */

// ------------------------------------------------------------------------------------- words

/** What went wrong, as the protocol says it: `code` for programs, `message` for people. */
export class RealtimeError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ retry?: boolean, closeCode?: number, cause?: unknown }} [details]
   */
  constructor(code, message, { retry = false, closeCode, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "RealtimeError";
    this.code = code;
    this.retry = retry;
    this.closeCode = closeCode;
  }
}

/** @param {unknown} error */
function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

/** @type {(value: unknown) => value is Message} */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @param {unknown} value @param {number} fallback */
const positive = (value, fallback) =>
  typeof value === "number" && value > 0 && value < Infinity ? value : fallback;

/** @param {string} text @returns {number} its length in UTF-8 */
function byteLength(text) {
  let length = text.length;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit > 0x7f) length += 1;
    // The two halves of a surrogate pair are two bytes each.
    if (unit > 0x7ff && (unit < 0xd800 || unit > 0xdfff)) length += 1;
  }
  return length;
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let binary = "";
  // In pieces: each byte is an argument, and the stack holds only so many.
  for (let i = 0; i < bytes.length; i += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  }
  return btoa(binary);
}

/** @param {string} text */
function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** @param {string} text */
function wellFormed(text) {
  if (/\p{Surrogate}/u.test(text)) throw new TypeError("a string holds a lone surrogate");
  return text;
}

/**
 * A payload as JSON can carry it, bytes as `{"$bytes": base64}`.
 * @param {any} value
 * @param {number} depth the level of the frame on which the value stands
 * @returns {any}
 */
function encode(value, depth) {
  if (typeof value === "string") return wellFormed(value);
  if (typeof value !== "object" || value === null) return value;
  if (depth > MAX_DEPTH) throw new TypeError(`nested deeper than ${MAX_DEPTH} levels`);
  if (value instanceof ArrayBuffer) return { $bytes: toBase64(new Uint8Array(value)) };
  if (ArrayBuffer.isView(value)) {
    return { $bytes: toBase64(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) };
  }
  if (typeof value.toJSON === "function") return encode(value.toJSON(), depth);
  if (Array.isArray(value)) return value.map((item) => encode(item, depth + 1));
  // JSON leaves these out, so they do not count when the members are counted below.
  const keys = Object.keys(value).filter(
    (key) => !["undefined", "function", "symbol"].includes(typeof value[key]),
  );
  const escape = keys.length === 1 && (keys[0] === "$bytes" || keys[0] === "$escaped");
  if (escape) return { $escaped: encodeMembers(value, keys, depth + 1) };
  return encodeMembers(value, keys, depth);
}

/** @param {any} value @param {string[]} keys @param {number} depth */
function encodeMembers(value, keys, depth) {
  if (depth > MAX_DEPTH) throw new TypeError(`nested deeper than ${MAX_DEPTH} levels`);
  const copy = Object.create(null); // so that a member named __proto__ is one like any other
  for (const key of keys) copy[wellFormed(key)] = encode(value[key], depth + 1);
  return copy;
}

/** @param {any} value what JSON.parse gave, changed in place @returns {any} */
function decode(value) {
  if (typeof value !== "object" || value === null) return value;
  const keys = Object.keys(value);
  if (keys.length === 1 && !Array.isArray(value)) {
    if (typeof value.$bytes === "string") return fromBase64(value.$bytes);
    if (keys[0] === "$escaped" && isObject(value.$escaped)) return decodeMembers(value.$escaped);
  }
  return decodeMembers(value);
}

/** @param {any} container */
function decodeMembers(container) {
  for (const key of Object.keys(container)) {
    const value = container[key];
    if (typeof value === "object" && value !== null) container[key] = decode(value);
  }
  return container;
}

/** @param {Message} message @returns {{ text: string, bytes: number }} */
function serialize(message) {
  try {
    const text = JSON.stringify(
      message.data === undefined ? message : { ...message, data: encode(message.data, 2) },
    );
    return { text, bytes: byteLength(text) };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new RealtimeError("invalid_message", `This cannot be sent: ${why}`, { cause });
  }
}

/** A name nobody can guess; randomUUID is missing on pages without TLS. */
function randomId() {
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The name of this browser among the user's devices; a new one where nothing can be kept. */
function storedDevice() {
  try {
    // Only a page's: Node's own writes a warning when it is touched.
    const storage = globalThis.document && globalThis.localStorage;
    const known = storage?.getItem(DEVICE_KEY);
    if (known && known.length <= 64) return known;
    const made = randomId();
    storage?.setItem(DEVICE_KEY, made);
    return made;
  } catch {
    return randomId(); // storage that is forbidden or full throws
  }
}

/** @param {string | URL} url the mount path or its address @returns {string} */
function doorOf(url) {
  const door = new URL(url, globalThis.location?.href);
  const scheme = { "http:": "ws:", "https:": "wss:", "ws:": "ws:", "wss:": "wss:" }[door.protocol];
  if (!scheme) throw new TypeError(`not an address of a realtime server: ${url}`);
  door.protocol = scheme;
  door.pathname = `${door.pathname.replace(/\/+$/, "")}/ws`;
  door.searchParams.set("hello", "1");
  door.hash = "";
  return door.href;
}

/**
 * The protocol's table of close codes.
 * @param {number} code
 */
function comesBack(code) {
  if (code >= 4000) return code >= 4500;
  return ![1000, 1002, 1003, 1007, 1008, 1010].includes(code);
}

/** @param {Message} question */
const nameOf = ({ id, ns, room, type }) => JSON.stringify([id, ns, room, type]);

/** @param {unknown} auth a token, or what fetches one */
const tokenOf = async (auth) => (typeof auth === "function" ? auth() : auth);

// ----------------------------------------------------------------------------- small machines

/** Handlers by name. One that throws, or rejects, is reported and the others still run. */
class Emitter {
  /** @type {Map<string, { fn: Function, once: boolean }[]>} */
  #handlers = new Map();
  #count = 0;

  /** @param {string} type @param {Function} fn @returns {() => void} */
  on(type, fn) {
    return this.#add(type, { fn, once: false });
  }

  /** @param {string} type @param {Function} fn @returns {() => void} */
  once(type, fn) {
    return this.#add(type, { fn, once: true });
  }

  /** @param {string} type @param {Function} [fn] without it, all handlers of the type */
  off(type, fn) {
    for (const handler of this.#handlers.get(type) ?? []) {
      if (fn === undefined || handler.fn === fn) this.#remove(type, handler);
    }
  }

  /** @param {string} type @param {any[]} args @returns {boolean} whether anybody listened */
  [EMIT](type, ...args) {
    const handlers = this.#handlers.get(type) ?? [];
    for (const handler of handlers) {
      if (handler.once) this.#remove(type, handler);
      try {
        const result = handler.fn(...args);
        if (typeof result?.then === "function") result.then(undefined, report);
      } catch (error) {
        report(error);
      }
    }
    return handlers.length > 0;
  }

  /** @param {string} type @param {{ fn: Function, once: boolean }} handler */
  #add(type, handler) {
    if (typeof handler.fn !== "function") throw new TypeError("a handler is a function");
    if (this.#count >= MAX_HANDLERS) throw new RangeError(`more than ${MAX_HANDLERS} handlers`);
    this.#count += 1;
    this.#handlers.set(type, [...(this.#handlers.get(type) ?? []), handler]);
    return () => this.#remove(type, handler);
  }

  /** @param {string} type @param {{ fn: Function, once: boolean }} handler */
  #remove(type, handler) {
    const before = this.#handlers.get(type);
    if (!before?.includes(handler)) return;
    this.#count -= 1;
    // A new list each time: a run through the old one goes on undisturbed.
    const after = before.filter((other) => other !== handler);
    if (after.length > 0) this.#handlers.set(type, after);
    else this.#handlers.delete(type);
  }
}

/** What a room and a namespace have in common: handlers of events, and answers to questions. */
class Listener {
  #core;
  #events = new Emitter();
  /** @type {Map<string, Function>} */
  #answerers = new Map();

  /** @param {Core} core */
  constructor(core) {
    this.#core = core;
  }

  /** @param {string} type @param {Function} fn */
  on(type, fn) {
    return this.#events.on(type, fn);
  }

  /** @param {string} type @param {Function} fn */
  once(type, fn) {
    return this.#events.once(type, fn);
  }

  /** @param {string} type @param {Function} [fn] */
  off(type, fn) {
    this.#events.off(type, fn);
  }

  /** @param {string} type @param {Function} fn @returns {() => void} */
  handle(type, fn) {
    if (typeof fn !== "function") throw new TypeError("a handler is a function");
    this.#answerers.set(type, fn);
    return () => {
      if (this.#answerers.get(type) === fn) this.#answerers.delete(type);
    };
  }

  /** @param {Message} message @param {Listener} [next] who answers when nobody does here */
  [HEAR](message, next) {
    const { type, room, offset, data, id } = message;
    if (id !== undefined && this.#core.knows(message)) return;
    const event = Object.freeze({ type, room, offset, data });
    const heard = this.#events[EMIT](type, data, event);
    if (id === undefined) return;
    const answerer = this.#answerers.get(type) ?? (next ?? this).#answerers.get(type);
    this.#core.answer(message, event, answerer, heard).catch(report);
  }
}

/** Full jitter: a delay between 0 and min(cap, base * 2^n), so that a crowd comes back spread. */
class Backoff {
  #n = 0;
  #options;

  /** @param {{ backoffBase: number, backoffCap: number, random: () => number }} options */
  constructor(options) {
    this.#options = options;
  }

  next() {
    const { backoffBase, backoffCap, random } = this.#options;
    return random() * Math.min(backoffCap, backoffBase * 2 ** this.#n++);
  }

  reset() {
    this.#n = 0;
  }
}

/**
 * Messages not yet done with, in the order in which they were sent. The durable ones go through a
 * window: the server takes one after the other, so that more of them on their way win nothing and
 * may cross its limits. The others go at once or not at all.
 */
class Outbox {
  /** @type {Map<number, Entry>} */
  #entries = new Map();
  #durable = { count: 0, bytes: 0 };
  #passing = { count: 0, bytes: 0 };
  #live = 0;
  #window = WINDOW;
  /** @type {unknown} */
  #pause = null;
  #options;
  #ready;

  /**
   * @param {typeof DEFAULTS} options
   * @param {() => void} ready called when there is room in the window
   */
  constructor(options, ready) {
    this.#options = options;
    this.#ready = ready;
  }

  /** @param {Entry} entry @param {number} backlog bytes in the socket @returns {boolean} */
  take(entry, backlog) {
    const { maxQueue, maxQueueBytes } = this.#options;
    const total = this.#total(entry);
    const bytes = Math.max(total.bytes, backlog);
    if (total.count >= maxQueue || (bytes > 0 && bytes + entry.bytes > maxQueueBytes)) {
      entry.done(queueFull());
      return false;
    }
    this.#entries.set(entry.id, entry);
    total.count += 1;
    total.bytes += entry.bytes;
    if (!entry.wantsReply) entry.done(null);
    return true;
  }

  /** Past the window. @param {Entry} entry @param {Connection} connection */
  send(entry, connection) {
    connection.send(entry.text, entry.bytes);
    if (!entry.wantsReply) return this.#forget(entry);
    entry.live = true;
    this.#live += 1;
    if (entry.timer === undefined && entry.timeout > 0 && entry.timeout < Infinity) {
      const expire = () => this.settle(entry.id, timedOut());
      entry.timer = this.#options.timers.setTimeout(expire, Math.min(entry.timeout, MAX_TIMER));
    }
  }

  /**
   * @param {Connection} connection
   * @param {(entry: Entry) => boolean} mayGo
   * @param {number} maxPayload
   */
  flush(connection, mayGo, maxPayload) {
    for (const entry of this.#entries.values()) {
      if (this.#pause !== null || this.#live >= this.#window) return;
      if (entry.live || !mayGo(entry)) continue;
      if (entry.bytes > maxPayload) this.settle(entry.id, tooLarge(maxPayload));
      else this.send(entry, connection);
    }
  }

  /** @param {unknown} id @param {RealtimeError | null} error @param {any} [value] */
  settle(id, error, value) {
    const entry = this.#entries.get(/** @type {number} */ (id));
    if (!entry) return false;
    this.#forget(entry);
    entry.done(error, value);
    this.#ready();
    return true;
  }

  /** @param {unknown} id @param {RealtimeError} error the server's answer */
  refuse(id, error) {
    const entry = this.#entries.get(/** @type {number} */ (id));
    if (!entry?.live || !entry.durable || error.code !== "rate_limited") {
      return this.settle(id, error);
    }
    // It keeps its place and its deadline, and goes again after a pause; then one at a time.
    entry.live = false;
    this.#live -= 1;
    this.#window = 1;
    this.#pause ??= this.#options.timers.setTimeout(() => {
      this.#pause = null;
      this.#ready();
    }, RATE_PAUSE);
    return true;
  }

  /** @param {(entry: Entry) => boolean} which @param {RealtimeError} error */
  fail(which, error) {
    for (const entry of [...this.#entries.values()]) {
      if (which(entry)) this.settle(entry.id, error);
    }
  }

  /** @param {RealtimeError} error what becomes of all of them */
  end(error) {
    this.fail(() => true, error);
    this.#unpause();
  }

  /** @param {number} code the close code of the connection that carried the live entries */
  disconnected(code) {
    let largest;
    for (const entry of this.#entries.values()) {
      if (entry.live && entry.durable && entry.bytes > (largest?.bytes ?? 0)) largest = entry;
    }
    // Sent again, the frame that was too large would end the next connection too.
    if (code === 1009 && largest) this.settle(largest.id, tooLarge());
    this.fail((entry) => !entry.durable, disconnected());
    for (const entry of this.#entries.values()) this.#ground(entry);
    this.#unpause();
  }

  #unpause() {
    this.#options.timers.clearTimeout(this.#pause);
    this.#pause = null;
  }

  /** @param {Entry} entry */
  #forget(entry) {
    this.#ground(entry);
    this.#entries.delete(entry.id);
    const total = this.#total(entry);
    total.count -= 1;
    total.bytes -= entry.bytes;
    if (this.#live === this.#entries.size) this.#window = WINDOW; // nothing waits
  }

  /** No connection carries it any more. @param {Entry} entry */
  #ground(entry) {
    this.#options.timers.clearTimeout(entry.timer);
    entry.timer = undefined;
    if (entry.live) this.#live -= 1;
    entry.live = false;
  }

  /** @param {Entry} entry */
  #total(entry) {
    return entry.durable ? this.#durable : this.#passing;
  }
}

const queueFull = () =>
  new RealtimeError("queue_full", "Too many messages are waiting", { retry: true });
const tooLarge = (limit = NaN) =>
  new RealtimeError("too_large", limit ? `Larger than ${limit} bytes` : "Message too large");
const timedOut = () => new RealtimeError("timeout", "No answer in time", { retry: true });
const disconnected = () => new RealtimeError("disconnected", "Not connected", { retry: true });
/** @param {string} why */
const notInRoom = (why) => new RealtimeError("not_in_room", why);

// --------------------------------------------------------------------------------- connection

/**
 * One socket from its first word to its one end. It puts the messages of a turn into as few
 * frames as it may, takes frames apart, and watches the silence; what is said is Core's.
 */
class Connection {
  #socket;
  #on;
  #timers;
  #several = false;
  #limit;
  #ended = false;
  /** @type {{ text: string, bytes: number }[]} */
  #batch = [];
  #batchBytes = 0;
  #heardAt = 0;
  #probing = false;
  #interval = 0;
  #timeout = 0;
  /** @type {unknown} */
  #beat;

  /**
   * @param {string} url
   * @param {api.WebSocketClass} WebSocket
   * @param {{ timers: typeof DEFAULTS.timers, maxPayload: number, hello: Wire }} options
   * @param {Ears} on
   */
  constructor(url, WebSocket, { timers, maxPayload, hello }, on) {
    this.#on = on;
    this.#timers = timers;
    this.#limit = maxPayload;
    const socket = (this.#socket = new WebSocket(url, SUBPROTOCOLS));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#several = SUBPROTOCOLS.includes(socket.protocol);
      this.send(hello.text, hello.bytes);
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#end(event.code || 1006, String(event.reason ?? ""));
    socket.onerror = () => {}; // it says nothing, and a close follows
  }

  /** Bytes handed over and not on the network yet. */
  get backlog() {
    return this.#batchBytes + (this.#socket.bufferedAmount ?? 0);
  }

  /**
   * @param {{ pingInterval: number, pingTimeout: number, maxPayload: number }} terms in ms and bytes
   */
  begin({ pingInterval, pingTimeout, maxPayload }) {
    this.#limit = maxPayload;
    this.#interval = pingInterval;
    this.#timeout = pingTimeout;
    this.#watch(pingInterval);
  }

  /** @param {string} text one object @param {number} bytes */
  send(text, bytes) {
    if (this.#batch.length === 0) queueMicrotask(() => this.#flush());
    this.#batch.push({ text, bytes });
    this.#batchBytes += bytes;
  }

  /** Asks for a sign of life, and cuts when none comes. @param {number} [timeout] ms */
  probe(timeout = Math.min(this.#timeout, PROBE_TIMEOUT)) {
    if (this.#probing || this.#ended) return;
    this.#probing = true;
    this.send('{"type":"ping"}', 15);
    this.#watch(timeout);
  }

  /** Ends it without waiting for the other side. @param {number} code @param {string} reason */
  close(code, reason) {
    this.#flush();
    const socket = this.#socket;
    this.#end(code, reason);
    try {
      socket.close(code, reason);
    } catch {
      socket.close();
    }
  }

  /** @param {unknown} data */
  #receive(data) {
    if (this.#ended) return;
    this.#heardAt = this.#timers.now();
    if (this.#probing) {
      this.#probing = false;
      this.#watch(this.#interval);
    }
    try {
      const text =
        typeof data === "string" ? data : new TextDecoder().decode(/** @type {any} */ (data));
      /** @type {Message | undefined} */
      let before;
      for (const line of this.#several ? text.split("\n") : [text]) {
        if (line !== "" && !this.#ended) before = this.#read(line, before);
      }
    } catch (error) {
      this.#on.malformed(error);
    }
  }

  /**
   * @param {string} line
   * @param {Message} [before] the one in front of it in its frame
   * @returns {Message | undefined} what one behind it may continue, whatever its payload is like
   */
  #read(line, before) {
    let message;
    try {
      message = JSON.parse(line);
      if (isObject(message) && message.type === undefined && before) {
        const { type, ns, room, offset } = before;
        message = { type, ns, room, offset: offset && offset + 1, ...message };
      }
      message = decode(message);
      if (typeof message?.type !== "string") throw new TypeError("a message has a type");
      if (!Number.isSafeInteger(message.offset ?? 0)) throw new TypeError("an offset is whole");
      for (const name of ["id", "ns", "room", "offset"]) {
        if (message[name] === null) delete message[name]; // null says as little as nothing
      }
    } catch (error) {
      this.#on.malformed(error);
      return message;
    }
    try {
      this.#on.message(message);
    } catch (error) {
      report(error);
    }
    return message;
  }

  #flush() {
    const batch = this.#batch;
    this.#batch = [];
    this.#batchBytes = 0;
    if (this.#ended || this.#socket.readyState !== 1) return;
    /** @type {string[]} */
    let frame = [];
    let size = 0;
    for (const { text, bytes } of batch) {
      const full = size + bytes > this.#limit || frame.length >= MAX_OBJECTS || !this.#several;
      if (full && frame.length > 0) {
        this.#socket.send(frame.join("\n"));
        frame = [];
        size = 0;
      }
      frame.push(text);
      size += bytes + 1;
    }
    if (frame.length > 0) this.#socket.send(frame.join("\n"));
  }

  /** @param {number} delay ms */
  #watch(delay) {
    this.#timers.clearTimeout(this.#beat);
    this.#beat = this.#timers.setTimeout(() => this.#listen(), Math.min(delay, MAX_TIMER));
  }

  #listen() {
    // Only a question that stayed open cuts: a timer alone may be late, as after a sleep.
    if (this.#probing) return this.close(4508, "no answer to ping");
    const silence = this.#timers.now() - this.#heardAt;
    if (silence >= this.#interval) this.probe(this.#timeout);
    else this.#watch(this.#interval - silence);
  }

  /** @param {number} code @param {string} reason */
  #end(code, reason) {
    if (this.#ended) return;
    this.#ended = true;
    this.#timers.clearTimeout(this.#beat);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#on.end(code, reason);
  }
}

// --------------------------------------------------------------------------------------- core

/** Decides which connection there is and when the next is tried, and sorts what arrives. */
class Core {
  /** @type {api.State} */
  state = "idle";
  /** @type {{ sessionId: string | null, clientId: string | null, userId: string | null }} */
  session = { sessionId: null, clientId: null, userId: null };
  /** @type {api.CloseReason | null} */
  closeReason = null;
  lifecycle = new Emitter();
  /** @type {Map<string, Namespace>} by name, the default one under "" */
  namespaces = new Map();
  options;
  /** @type {unknown} */
  auth;
  /** @type {string} */
  deviceId;
  #url;
  #WebSocket;
  #outbox;
  #backoff;
  #maxPayload = 1_000_000;
  #lastId = 0;
  #tries = 0;
  #startedAt = 0;
  #welcomedBefore = false;
  /** @type {string | undefined} */
  #resume;
  /** @type {Attempt | null} */
  #attempt = null;
  /** @type {{ timer: unknown, patient: boolean } | null} */
  #pause = null;
  /** @type {unknown} */
  #stable;
  /** @type {Done[]} */
  #waiters = [];
  /** @type {Map<string, Question>} of the present session, the oldest first */
  #questions = new Map();
  #answerBytes = 0;

  /** @param {string | URL} url @param {api.Options} options */
  constructor(url, options) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    /** @type {typeof DEFAULTS} */
    this.options = { ...DEFAULTS, ...Object.fromEntries(given) };
    const WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (WebSocket === undefined)
      throw new TypeError("there is no WebSocket here: give options.WebSocket");
    this.#url = doorOf(url);
    this.#WebSocket = /** @type {api.WebSocketClass} */ (WebSocket);
    this.auth = options.auth;
    this.deviceId = options.deviceId ?? storedDevice();
    if (typeof this.deviceId !== "string" || this.deviceId === "") {
      throw new TypeError("a deviceId is a string");
    }
    this.#outbox = new Outbox(this.options, () => this.flush());
    this.#backoff = new Backoff(this.options);
  }

  /** @param {Done} done called when there is a connection, or none any more */
  connect(done) {
    if (this.state === "connected") return done(null);
    this.#waiters.push(done);
    if (this.state !== "idle" && this.state !== "closed") return;
    this.#tries = 0;
    this.#startedAt = this.options.timers.now();
    this.#welcomedBefore = false;
    this.#backoff.reset();
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.addEventListener?.("offline", this.#doubt);
    globalThis.document?.addEventListener("visibilitychange", this.#wake);
    this.#setState("connecting");
    this.#begin();
  }

  /** @param {number} code @param {string} reason */
  close(code, reason) {
    if (this.state === "closed") return;
    const attempt = this.#attempt;
    this.#attempt = null;
    this.options.timers.clearTimeout(attempt?.timer);
    attempt?.connection?.close(code, reason);
    this.#finish({ code, reason, willReconnect: false }, closed("Closed by the client", code));
  }

  /**
   * Sends when there is a way, keeps what may wait, refuses what may not.
   * @param {Namespace} ns
   * @param {Message} message
   * @param {How} how
   * @param {Done} done
   */
  submit(ns, message, { wantsReply, durable, gate, timeout = this.options.timeout }, done) {
    const id = ++this.#lastId;
    let wire;
    try {
      const address = ns.name === "" ? {} : { ns: ns.name };
      wire = serialize({ ...message, ...(wantsReply ? { id } : {}), ...address });
    } catch (error) {
      return done(/** @type {RealtimeError} */ (error));
    }
    if (this.state === "closed") return done(closed("The client is closed"));
    if (wire.bytes > this.#maxPayload) return done(tooLarge(this.#maxPayload));
    const connection = this.#attempt?.connection;
    const way = connection && ns[IS_OPEN](gate) ? connection : null;
    if (!durable && !way) return done(wantsReply ? disconnected() : null);
    const entry = { id, ns, room: gate, ...wire, wantsReply, durable, timeout, done };
    if (!this.#outbox.take(entry, connection?.backlog ?? 0)) return;
    if (durable) this.flush();
    else if (way) this.#outbox.send(entry, way);
  }

  /** @param {Namespace} ns @param {Message} message @param {How} how @returns {Promise<any>} */
  ask(ns, message, how) {
    return new Promise((resolve, reject) => {
      this.submit(ns, message, how, (error, value) => (error ? reject(error) : resolve(value)));
    });
  }

  /** Sends what waited and need not wait any more. */
  flush() {
    const connection = this.#attempt?.connection;
    if (!connection) return;
    const mayGo = (/** @type {Entry} */ { ns, room }) => ns[IS_OPEN](room);
    this.#outbox.flush(connection, mayGo, this.#maxPayload);
  }

  /**
   * Gives up what waits for a room, or for a whole namespace.
   * @param {Namespace} ns
   * @param {string | null} room
   * @param {RealtimeError} error
   */
  abandon(ns, room, error) {
    const lost = (/** @type {Entry} */ entry) =>
      entry.ns === ns && !entry.live && (room === null || entry.room === room);
    this.#outbox.fail(lost, error);
  }

  /**
   * Says a thing now or never.
   * @param {Message} message
   * @param {unknown} [on] only on this connection
   */
  say(message, on = this.#attempt) {
    const connection = this.#attempt?.connection;
    if (!connection || this.#attempt !== on) return;
    const { text, bytes } = serialize(message);
    if (bytes > this.#maxPayload) throw tooLarge(this.#maxPayload);
    connection.send(text, bytes);
  }

  /** Stands for the connection there is now. */
  get current() {
    return this.#attempt?.welcomed ? this.#attempt : null;
  }

  /**
   * Whether a question has come before. The server asks again on each connection until it has the
   * answer: it gets the same one, as soon as there is one.
   * @param {Message} message
   */
  knows(message) {
    const question = this.#questions.get(nameOf(message));
    if (!question) return false;
    question.on = this.#attempt;
    this.#reply(question);
    return true;
  }

  /** @param {Question} question */
  #reply({ on, reply }) {
    if (reply && this.#attempt === on) this.#attempt?.connection?.send(reply.text, reply.bytes);
  }

  /**
   * Answers a message that carried an `id`, on the connection that brought it last.
   * @param {Message} message
   * @param {object} event
   * @param {Function | undefined} answerer
   * @param {boolean} heard somebody listened to it
   */
  async answer(message, event, answerer, heard) {
    const { id, ns, data } = message;
    /** @type {Question} */
    const question = { on: this.#attempt, reply: null };
    this.#questions.set(nameOf(message), question);
    const reply = (/** @type {unknown} */ answer) => {
      const wire = serialize({ type: "ack", id, ns, data: answer ?? null });
      if (wire.bytes > this.#maxPayload) throw tooLarge(this.#maxPayload);
      question.reply = wire;
      this.#reply(question);
      if (this.#questions.get(nameOf(message)) === question) this.#remember(wire.bytes);
    };
    const refuse = (/** @type {string} */ code, /** @type {string} */ error) =>
      reply({ code, error });
    try {
      if (answerer) reply(await answerer(data, event));
      else if (heard) reply(null);
      else refuse("no_handler", "No handler");
    } catch (error) {
      // What went wrong inside stays inside, unless the handler chose to say it.
      if (error instanceof RealtimeError) return refuse(error.code, error.message.slice(0, 1_000));
      report(error);
      refuse("handler_error", "Handler failed");
    }
  }

  /** @param {number} bytes of one more answer */
  #remember(bytes) {
    this.#answerBytes += bytes;
    for (const [name, { reply }] of this.#questions) {
      if (this.#questions.size <= MAX_ANSWERS && this.#answerBytes <= MAX_ANSWER_BYTES) break;
      if (!reply) continue;
      this.#answerBytes -= reply.bytes;
      this.#questions.delete(name);
    }
  }

  #forgetQuestions() {
    this.#questions.clear();
    this.#answerBytes = 0;
  }

  #begin() {
    this.#pause = null;
    this.#tries += 1;
    /** @type {Attempt} */
    const attempt = { connection: null, welcomed: false, refusal: null, timer: null };
    const late = () => {
      if (attempt.connection) attempt.connection.close(4508, "no connection in time");
      else this.#lost(attempt, 1006, "no connection in time");
    };
    attempt.timer = this.options.timers.setTimeout(late, this.options.connectTimeout);
    this.#attempt = attempt;
    void this.#open(attempt);
  }

  /** @param {Attempt} attempt */
  async #open(attempt) {
    let hello;
    try {
      const token = await tokenOf(this.auth);
      hello = serialize({
        type: "connect",
        data: { token: token ?? undefined, resume: this.#resume, deviceId: this.deviceId },
      });
    } catch (cause) {
      if (this.#attempt !== attempt) return;
      const final = cause instanceof RealtimeError && !cause.retry;
      const failure = new RealtimeError("auth_failed", "No token could be had", {
        retry: !final,
        cause,
      });
      attempt.refusal = final ? cause : failure;
      this.lifecycle[EMIT]("error", attempt.refusal);
      return this.#lost(attempt, final ? 4401 : 1006, attempt.refusal.message);
    }
    if (this.#attempt !== attempt) return;
    try {
      const { timers } = this.options;
      const options = { timers, maxPayload: this.#maxPayload, hello };
      attempt.connection = new Connection(this.#url, this.#WebSocket, options, {
        message: (message) => this.#dispatch(attempt, message),
        malformed: (cause) => this.#malformed(cause),
        end: (code, reason) => this.#lost(attempt, code, reason),
      });
    } catch (cause) {
      // The constructor throws for what another try would not change, such as mixed content.
      attempt.refusal = new RealtimeError("connect_failed", "The socket was refused", { cause });
      this.#lost(attempt, 4400, attempt.refusal.message);
    }
  }

  /** @param {Attempt} attempt @param {Message} message */
  #dispatch(attempt, message) {
    const { type, id, room, roomId } = message;
    const ns = this.namespaces.get(message.ns === "/" ? "" : (message.ns ?? ""));
    if (!ns) return;
    // A message of the protocol is known by its members, so an event may have any name.
    if (type === "connected" && room === undefined) {
      if (ns.name !== "") ns[OPENED]();
      else if (!attempt.welcomed) this.#welcome(attempt, message);
    } else if (type === "ack" && id !== undefined) {
      this.#outbox.settle(id, null, message.data);
    } else if (type === "error" && typeof message.code === "string") {
      this.#refused(attempt, ns, message);
    } else if ((type === "joined" || type === "left") && typeof roomId === "string") {
      if (id === undefined) ns[REPLACED](message);
      else this.#outbox.settle(id, null, message);
    } else if (type === "ping" && room === undefined) {
      this.say({ type: "pong" });
    } else if (type !== "pong" || room !== undefined) {
      ns[RECEIVE](message);
    }
  }

  /** @param {Attempt} attempt @param {Message} message */
  #welcome(attempt, message) {
    const { timers } = this.options;
    timers.clearTimeout(attempt.timer);
    attempt.welcomed = true;
    const { sessionId = null, clientId = null, userId = null, resume } = message;
    this.session = { sessionId, clientId, userId };
    this.#resume = typeof resume === "string" ? resume : undefined;
    if (message.resumed !== true) this.#forgetQuestions();
    this.#maxPayload = positive(message.maxPayload, this.#maxPayload);
    attempt.connection?.begin({
      pingInterval: positive(message.pingInterval, 25_000),
      pingTimeout: positive(message.pingTimeout, 20_000),
      maxPayload: this.#maxPayload,
    });
    this.#tries = 0;
    this.#stable = timers.setTimeout(() => this.#backoff.reset(), STABLE_AFTER);
    const previous = this.state;
    this.state = "connected";
    // Rooms and waiting messages go first: a handler told of the connection may send at once.
    for (const ns of this.namespaces.values()) void ns[START]();
    this.lifecycle[EMIT]("state", "connected", previous);
    if (this.#attempt !== attempt) return; // a handler decided otherwise
    if (this.#welcomedBefore)
      this.lifecycle[EMIT]("resumed", { sessionId, resumed: message.resumed === true });
    this.#welcomedBefore = true;
    for (const done of this.#waiters.splice(0)) done(null);
  }

  /** @param {Attempt} attempt @param {Namespace} ns @param {Message} message */
  #refused(attempt, ns, message) {
    const error = new RealtimeError(message.code, String(message.error ?? message.code), {
      retry: message.retry === true,
    });
    if (message.id !== undefined && this.#outbox.refuse(message.id, error)) return;
    if (!attempt.welcomed) attempt.refusal = error;
    else if (message.id === undefined) ns[REFUSED](error);
  }

  /** @param {unknown} cause */
  #malformed(cause) {
    const error = new RealtimeError("invalid_message", "The server sent what is no message", {
      cause,
    });
    this.lifecycle[EMIT]("error", error);
  }

  /** @param {Attempt} attempt @param {number} code @param {string} reason */
  #lost(attempt, code, reason) {
    if (this.#attempt !== attempt) return;
    const { timers, maxTries } = this.options;
    this.#attempt = null;
    timers.clearTimeout(attempt.timer);
    timers.clearTimeout(this.#stable);
    for (const ns of this.namespaces.values()) ns[LOST]();
    this.#outbox.disconnected(code);
    const drain = code === 4512 && /^\d{1,9}$/.test(reason);
    const delay = drain ? Math.min(Number(reason), MAX_DRAIN_DELAY) : this.#backoff.next();
    const usedUp = this.#tries >= maxTries || this.#isHopeless(delay);
    const closeReason = { code, reason, willReconnect: comesBack(code) && !usedUp };
    if (!closeReason.willReconnect) {
      return this.#finish(closeReason, this.#farewell(attempt, closeReason));
    }
    this.closeReason = closeReason;
    const timer = timers.setTimeout(() => this.#begin(), delay);
    this.#pause = { timer, patient: drain };
    const asBefore = () => this.#pause?.timer === timer; // no handler decided otherwise
    if (this.#welcomedBefore) this.#setState("reconnecting");
    if (asBefore()) this.lifecycle[EMIT]("close", closeReason);
    if (!asBefore()) return;
    this.lifecycle[EMIT]("reconnecting", { attempt: this.#tries + 1, delay, closeReason });
  }

  /**
   * Nobody waits for ever for a first connection: the address may be wrong, and a browser does
   * not tell a server that refuses from one that is away.
   * @param {number} delay ms until the next try
   */
  #isHopeless(delay) {
    const { timers, giveUpAfter } = this.options;
    return !this.#welcomedBefore && timers.now() + delay - this.#startedAt > giveUpAfter;
  }

  /** @param {Attempt} attempt @param {api.CloseReason} closeReason */
  #farewell({ refusal }, { code, reason }) {
    const why = refusal?.message || reason || `closed with ${code}`;
    const cause = refusal?.cause;
    if (!comesBack(code)) {
      return new RealtimeError(refusal?.code ?? "closed", why, { closeCode: code, cause });
    }
    const sentence = `No connection after ${this.#tries} tries, the last one: ${why}`;
    const word = refusal?.code ?? "unavailable";
    return new RealtimeError(word, sentence, { retry: true, closeCode: code, cause });
  }

  /** @param {api.CloseReason} closeReason @param {RealtimeError} error */
  #finish(closeReason, error) {
    const { timers } = this.options;
    timers.clearTimeout(this.#pause?.timer);
    timers.clearTimeout(this.#stable);
    this.#pause = null;
    this.#resume = undefined;
    this.closeReason = closeReason;
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("offline", this.#doubt);
    globalThis.document?.removeEventListener("visibilitychange", this.#wake);
    const previous = this.state;
    this.state = "closed";
    this.#forgetQuestions();
    // What waited ends before any handler runs: one of them may connect again.
    this.#outbox.end(error);
    for (const done of this.#waiters.splice(0)) done(error);
    for (const ns of this.namespaces.values()) ns[END](error);
    if (this.state === "closed") this.lifecycle[EMIT]("state", "closed", previous);
    this.lifecycle[EMIT]("close", closeReason);
  }

  /** @param {api.State} state */
  #setState(state) {
    const previous = this.state;
    this.state = state;
    if (state !== previous) this.lifecycle[EMIT]("state", state, previous);
  }

  /** The network or the page is back: try now, or make sure. */
  #wake = () => {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#pause === null) return this.#doubt();
    if (this.#pause.patient) return; // the server named the moment
    this.options.timers.clearTimeout(this.#pause.timer);
    this.#begin();
  };

  #doubt = () => {
    if (this.#attempt?.welcomed) this.#attempt.connection?.probe();
  };
}

/** @param {string} message @param {number} [closeCode] */
const closed = (message, closeCode) => new RealtimeError("closed", message, { closeCode });

// --------------------------------------------------------------------------------------- room

/**
 * A room the client is in, and comes back to by itself after a loss.
 * @implements {api.Room}
 */
class Room extends Listener {
  #core;
  #ns;
  #name;
  #timeout;
  #recents = new Emitter();
  #lifecycle = new Emitter();
  /** @type {api.Position | null} */
  #position = null;
  /** @type {Map<unknown, api.RoomMember>} */
  #members = new Map();
  /** @type {any[]} */
  #recentMessages = [];
  /** @type {boolean | undefined} */
  #recovered;
  #joined = false;
  #entered = false;
  #left = false;
  /** @type {(() => void)[] | null} what arrived before the caller of join() could listen */
  #held = null;
  #done;
  #backoff;
  /** @type {unknown} */
  #timer;

  /**
   * @param {Core} core
   * @param {Namespace} ns
   * @param {string} name
   * @param {api.JoinOptions<any>} options
   * @param {Done} done
   */
  constructor(core, ns, name, { since, on = {}, timeout }, done) {
    super(core);
    this.#core = core;
    this.#ns = ns;
    this.#name = name;
    this.#timeout = timeout;
    this.#position = positionOf(since);
    this.#done = done;
    this.#backoff = new Backoff(core.options);
    for (const [type, fn] of Object.entries(on)) if (fn) this.on(type, fn);
  }

  get name() {
    return this.#name;
  }
  get joined() {
    return this.#joined;
  }
  get recovered() {
    return this.#recovered;
  }
  get position() {
    return this.#position;
  }
  get members() {
    return [...this.#members.values()];
  }
  get recentMessages() {
    return this.#recentMessages;
  }
  get lifecycle() {
    return this.#lifecycle;
  }

  /**
   * @param {string} type
   * @param {any} [data]
   * @param {api.RoomSendOptions} [options]
   * @returns {Promise<any>}
   */
  async send(type, data, options) {
    if (this.#left) throw notInRoom("The room was left");
    return this.#ns.send(type, data, { ...options, room: this.#name });
  }
  /** @param {any} data @param {api.RoomSendOptions} [options] */
  broadcast(data, options) {
    return this.send("broadcast", data, options);
  }
  async leave() {
    if (!this.#left) await this.#ns.leave(this.#name);
  }
  /** @param {api.HistoryQuery} [query] */
  history(query = {}) {
    return this.#ask("history", query);
  }
  /** @param {api.MembersQuery} [query] */
  membersPage(query = {}) {
    return this.#ask("members", query);
  }

  /** @param {string} type @param {object} data @returns {Promise<any>} */
  async #ask(type, data) {
    if (this.#left) throw notInRoom("The room was left");
    return this.#core.ask(this.#ns, { type, room: this.#name, data }, QUESTION);
  }

  /** Asks the server in, for the first time or again. */
  [ENTER]() {
    this.#core.options.timers.clearTimeout(this.#timer);
    const message = { type: "join", room: this.#name, since: this.#position ?? undefined };
    const how = { ...COMMAND, timeout: this.#timeout };
    this.#core.submit(this.#ns, message, how, (error, reply) => {
      if (this.#left) return;
      if (error) this.#refused(error);
      else this.#welcome(reply);
    });
  }

  [LOST]() {
    this.#joined = false;
    this.#core.options.timers.clearTimeout(this.#timer);
  }

  /** @param {RealtimeError} error why the client is in this room no longer */
  [END](error) {
    if (this.#left) return;
    this.#left = true;
    this.#joined = false;
    this.#held = null;
    this.#core.options.timers.clearTimeout(this.#timer);
    this.#core.abandon(this.#ns, this.#name, error);
    if (this.#entered) this.#lifecycle[EMIT]("left", { reason: error.message, error });
    else this.#done(error);
  }

  /** @param {(messages: any[], room: any) => void} fn */
  [ON_RECENT](fn) {
    if (this.#entered && this.#recovered !== true) {
      const late = new Emitter();
      late.on("recent", fn);
      late[EMIT]("recent", this.#recentMessages, this);
    }
    this.#recents.on("recent", fn);
  }

  /** @param {Message} reply a `joined` nobody asked for: the server lost track */
  [REPLACED](reply) {
    if (this.#entered) this.#inTurn(() => this.#catchUp(reply));
  }

  /** @param {Message} message an event */
  [RECEIVE](message) {
    if (this.#entered) this.#inTurn(() => this.#take(message));
  }

  /** @param {Message} data of a presence-update */
  [PRESENCE](data) {
    const member = this.#members.get(data.userId);
    if (!member) return;
    this.#members.set(data.userId, { ...member, status: data.status });
    this.#lifecycle[EMIT]("members", this.members);
  }

  /** @param {() => void} step */
  #inTurn(step) {
    if (this.#held) this.#held.push(step);
    else if (!this.#left) step();
  }

  /** @param {Message} reply */
  #welcome(reply) {
    this.#joined = true;
    this.#backoff.reset();
    if (this.#entered) {
      this.#inTurn(() => this.#catchUp(reply));
    } else {
      this.#entered = true;
      this.#adopt(reply);
      this.#done(null, this);
      // The caller's `await join()` goes on in a later microtask; until then its handlers are
      // missing, and what was recovered follows in the same frame.
      this.#held = [];
      this.#core.options.timers.setTimeout(() => this.#release(), 0);
      if (!this.#recovered) this.#recents[EMIT]("recent", this.#recentMessages, this);
    }
    this.#core.flush();
  }

  #release() {
    const held = this.#held ?? [];
    this.#held = null;
    for (const step of held) this.#inTurn(step);
  }

  /** @param {Message} reply */
  #adopt(reply) {
    const members = Array.isArray(reply.members) ? reply.members.filter(isObject) : [];
    this.#members = new Map(members.map((member) => [member.userId, /** @type {any} */ (member)]));
    this.#recovered = reply.recovered;
    // Recovered, the position stays: what was missed is still to come, and begins after it.
    if (reply.recovered === true && this.#position) return;
    this.#position = positionOf(reply.position);
    this.#recentMessages = Array.isArray(reply.recentMessages) ? reply.recentMessages : [];
  }

  /** @param {Message} reply */
  #catchUp(reply) {
    this.#adopt(reply);
    this.#lifecycle[EMIT]("members", this.members);
    if (this.#recovered === true) {
      this.#lifecycle[EMIT]("recovered", this.#position);
    } else {
      this.#lifecycle[EMIT]("replaced", this.#recentMessages);
      this.#recents[EMIT]("recent", this.#recentMessages, this);
    }
  }

  /** @param {Message} message */
  #take(message) {
    const { type, offset, data, nonce } = message;
    if (offset !== undefined && this.#position) {
      if (offset <= this.#position.offset) return; // a duplicate
      this.#position = positionOf({ epoch: this.#position.epoch, offset, nonce });
    }
    this.#count(type, data);
    this[HEAR](message, this.#ns);
  }

  /** Keeps the list of members. @param {string} type @param {any} data */
  #count(type, data) {
    if (!isObject(data) || data.userId === undefined) return;
    if (type === "presence-update") return this[PRESENCE](data);
    const { userId, user, status } = data;
    if (type === "user-joined" && this.#members.size < MAX_MEMBERS) {
      this.#members.set(userId, { userId, user, ...(status !== undefined && { status }) });
    } else if (type !== "user-left" || !this.#members.delete(userId)) {
      return;
    }
    this.#lifecycle[EMIT]("members", this.members);
  }

  /** @param {RealtimeError} error */
  #refused(error) {
    if (error.code === "disconnected") return; // the next connection asks again
    if (this.#entered && error.retry) {
      const { timers } = this.#core.options;
      this.#timer = timers.setTimeout(() => this[ENTER](), this.#backoff.next());
      return;
    }
    if (this.#entered) this.#lifecycle[EMIT]("error", error);
    // The answer may be late only: the server shall not keep in the room who has given up.
    const leave = { type: "leave", room: this.#name };
    if (error.code === "timeout") this.#core.submit(this.#ns, leave, COMMAND, () => {});
    this.#ns[DROP](this, error);
  }
}

/**
 * @param {any} value
 * @returns {api.Position | null} only what the protocol names, so it can be sent back
 */
function positionOf(value) {
  if (!isObject(value) || !Number.isSafeInteger(value.offset)) return null;
  const { epoch, offset, nonce } = value;
  return Object.freeze(nonce === undefined ? { epoch, offset } : { epoch, offset, nonce });
}

// -------------------------------------------------------------------------------------- inbox

/**
 * @typedef {object} Visit what one connection has brought; nothing of it concerns the next
 * @property {number} newest offset of what was handled
 * @property {number} upTo what may be acknowledged
 * @property {number} told what the server knows of it
 * @property {boolean} paging more of what was pending is still to come, and is older than `newest`
 * @property {boolean} failed one was not handled, so nothing after it is acknowledged
 * @property {boolean} asking
 */
/** @returns {Visit} */
const newVisit = () => ({
  newest: 0,
  upTo: 0,
  told: 0,
  paging: false,
  failed: false,
  asking: false,
});

/**
 * Private messages, each handled once, one after the other, and acknowledged after that. What was
 * not acknowledged comes again with the next connection.
 */
class Inbox {
  #core;
  #ns;
  /** @type {Function | null} */
  #fn = null;
  #visit = newVisit();
  /** @type {Set<string>} ids of those that were handled */
  #handled = new Set();
  /** @type {unknown} whose they are */
  #userId = null;
  /** @type {{ message: Message, visit: Visit, more: boolean | undefined }[]} */
  #queue = [];
  #busy = false;
  /**
   * What came before the caller of connect() could listen.
   * @type {[messages: unknown, more?: unknown][] | null}
   */
  #early = null;
  /** @type {unknown} */
  #timer;
  #backoff;

  /** @param {Core} core @param {Namespace} ns */
  constructor(core, ns) {
    this.#core = core;
    this.#ns = ns;
    this.#backoff = new Backoff(core.options);
  }

  /** @param {Function} fn @returns {() => void} */
  listen(fn) {
    if (typeof fn !== "function") throw new TypeError("a handler is a function");
    if (this.#fn) throw new TypeError("the inbox has a handler already");
    this.#fn = fn;
    for (const page of this.#early?.splice(0) ?? []) this.take(...page);
    return () => {
      if (this.#fn === fn) this.#fn = null;
    };
  }

  /** The namespace was opened on another connection. */
  begin() {
    const { session, options } = this.#core;
    if (session.userId !== this.#userId) this.#handled.clear();
    this.#userId = session.userId;
    this.#visit = newVisit();
    if (this.#fn) return;
    this.#early = [];
    this.#timer = options.timers.setTimeout(() => (this.#early = null), 0);
  }

  /** The connection is gone. */
  end() {
    this.#core.options.timers.clearTimeout(this.#timer);
    this.#early = null;
    this.#visit = newVisit();
  }

  /** @param {unknown} messages @param {unknown} [more] given with a page of what was pending */
  take(messages, more) {
    if (!this.#fn) return void this.#early?.push([messages, more]);
    const visit = this.#visit;
    const letters = (Array.isArray(messages) ? messages : []).filter(
      (one) => typeof one?.id === "string" && Number.isSafeInteger(one.offset),
    );
    letters.forEach((message, index) => {
      const ends = more !== undefined && index === letters.length - 1;
      if (this.#queue.length >= MAX_LETTERS) visit.failed = true;
      else this.#queue.push({ message, visit, more: ends ? more === true : undefined });
    });
    this.#work();
  }

  #work() {
    while (!this.#busy) {
      const item = this.#queue.shift();
      if (!item) return;
      if (this.#handled.has(item.message.id)) this.#done(item);
      else this.#handle(item);
    }
  }

  /** @param {{ message: Message, visit: Visit, more: boolean | undefined }} item */
  #handle(item) {
    const failed = (/** @type {unknown} */ error) => {
      item.visit.failed = true;
      report(error);
    };
    if (!this.#fn) return void (item.visit.failed = true);
    try {
      const result = this.#fn(item.message);
      if (typeof result?.then !== "function") return this.#done(item);
      this.#busy = true;
      result
        .then(() => this.#done(item), failed)
        .then(() => {
          this.#busy = false;
          this.#work();
        });
    } catch (error) {
      failed(error);
    }
  }

  /** @param {{ message: Message, visit: Visit, more: boolean | undefined }} item */
  #done({ message, visit, more }) {
    this.#handled.add(message.id);
    const [oldest = ""] = this.#handled;
    if (this.#handled.size > MAX_LETTERS) this.#handled.delete(oldest);
    if (visit.failed) return;
    visit.newest = Math.max(visit.newest, message.offset);
    visit.paging = more ?? visit.paging;
    // The acknowledgement of a page brings the next one.
    if (more) visit.upTo = message.offset;
    else if (!visit.paging) visit.upTo = visit.newest;
    void this.#acknowledge(visit);
  }

  /** @param {Visit} visit */
  async #acknowledge(visit) {
    if (visit.asking) return;
    visit.asking = true;
    await null; // once for all that are handled in one go
    while (visit === this.#visit && visit.upTo > visit.told) {
      const { upTo } = visit;
      try {
        await this.#core.ask(this.#ns, { type: "ack-messages", data: { upTo } }, QUESTION);
        visit.told = upTo;
        this.#backoff.reset();
      } catch (/** @type {any} */ error) {
        if (!error.retry) break; // the next message, or the next connection, tries again
        const delay = this.#backoff.next();
        // Nobody goes on after the end of the connection, which clears the timer.
        await new Promise((go) => {
          this.#timer = this.#core.options.timers.setTimeout(() => go(null), delay);
        });
      }
    }
    visit.asking = false;
  }
}

// ------------------------------------------------------------------------ namespace and client

/**
 * Events, rooms and handlers of one namespace.
 * @implements {api.Namespace}
 */
class Namespace extends Listener {
  #core;
  #name;
  #auth;
  #lifecycle;
  /** @type {Map<string, { room: Room, joining: Promise<any> }>} */
  #rooms = new Map();
  #open = false;
  /** @type {RealtimeError | null} */
  #refusal = null;
  #backoff;
  /** @type {unknown} the connection on which the namespace has been asked for */
  #askedOn = null;
  /** @type {unknown} */
  #timer;
  /** @type {Done[]} */
  #waiters = [];
  #inbox;
  /** @type {Set<Set<string>>} ids of the users whose status somebody here wants to know */
  #watches = new Set();
  #statuses = new Emitter();

  /**
   * @param {Core} core
   * @param {string} name
   * @param {unknown} [auth]
   * @param {Emitter} [lifecycle]
   */
  constructor(core, name, auth, lifecycle = new Emitter()) {
    super(core);
    this.#core = core;
    this.#name = name;
    this.#auth = auth;
    this.#lifecycle = lifecycle;
    this.#backoff = new Backoff(core.options);
    this.#inbox = new Inbox(core, this);
    core.namespaces.set(name, this);
  }

  get name() {
    return this.#name;
  }
  /** @returns {api.State} */
  get state() {
    if (this.#refusal) return "closed";
    return this.#core.state === "connected" && !this.#open ? "connecting" : this.#core.state;
  }
  /** @returns {any} */
  get lifecycle() {
    return this.#lifecycle;
  }

  /** @returns {Promise<any>} */
  connect() {
    if (this.#open) return Promise.resolve(this);
    return new Promise((resolve, reject) => {
      this.#refusal = null;
      this.#waiters.push((error) => (error ? reject(error) : resolve(this)));
      if (this.#core.state === "closed") this.#settle(closed("The client is closed"));
      else void this[START]();
    });
  }

  /**
   * @param {string} type
   * @param {any} [data]
   * @param {api.SendOptions} [options]
   * @returns {Promise<any>}
   */
  async send(type, data, options = {}) {
    const { volatile = false, ack = !volatile, room, timeout } = options;
    const { messageId = ack ? randomId() : undefined } = options;
    if (typeof type !== "string" || type === "") throw new TypeError("an event has a name");
    if (messageId !== undefined && (typeof messageId !== "string" || messageId.length > 64)) {
      throw new TypeError("a messageId is a string of at most 64 characters");
    }
    if (this.#refusal) throw this.#refusal;
    const message = { type, room, data, messageId };
    return this.#core.ask(this, message, {
      wantsReply: ack,
      durable: !volatile,
      gate: room,
      timeout,
    });
  }

  /** @param {string} name @param {api.JoinOptions<any>} [options] @returns {Promise<any>} */
  async join(name, options = {}) {
    if (typeof name !== "string" || name === "") throw new TypeError("a room has a name");
    if (this.#core.state === "closed") throw closed("The client is closed");
    if (this.#refusal) throw this.#refusal;
    const { room, joining } = this.#rooms.get(name) ?? this.#enter(name, options);
    if (options.onRecent) room[ON_RECENT](options.onRecent);
    return joining;
  }

  /** @param {string} name @returns {Promise<void>} */
  async leave(name) {
    const room = this.#rooms.get(name)?.room;
    if (!room) return;
    this[DROP](room, notInRoom("The room was left"));
    // Whatever else goes wrong, the client is out: it will not ask in again.
    await this.#core.ask(this, { type: "leave", room: name }, COMMAND).catch((error) => {
      if (error.code === "timeout") throw error;
    });
  }

  /** @param {string} name @returns {any} */
  room(name) {
    return this.#rooms.get(name)?.room;
  }

  /** @param {(message: api.PrivateMessage) => unknown} fn @returns {() => void} */
  inbox(fn) {
    return this.#inbox.listen(fn);
  }

  /**
   * @param {Iterable<string>} userIds
   * @param {(presence: { userId: string, status: string }) => unknown} fn
   * @returns {() => void}
   */
  watch(userIds, fn) {
    if (typeof fn !== "function") throw new TypeError("a handler is a function");
    const ids = new Set(userIds);
    const off = this.#statuses.on("status", (/** @type {any} */ one) =>
      ids.has(one.userId) ? fn(one) : undefined,
    );
    this.#watches.add(ids);
    if (this.#open) this.#tellWatched("watch-presence", [...ids]);
    return () => {
      off();
      if (!this.#watches.delete(ids) || !this.#open) return;
      const others = new Set([...this.#watches].flatMap((watch) => [...watch]));
      this.#tellWatched(
        "unwatch-presence",
        [...ids].filter((id) => !others.has(id)),
      );
    };
  }

  /** @param {string} type @param {string[]} ids */
  #tellWatched(type, ids) {
    for (let at = 0; at < ids.length; at += MAX_WATCHED) {
      const message = { type, data: { userIds: ids.slice(at, at + MAX_WATCHED) } };
      // Durable for the sake of a pause when the server is asked too much.
      this.#core.ask(this, message, QUESTION).then(
        (reply) => {
          for (const one of reply?.users ?? []) this.#statuses[EMIT]("status", one);
        },
        (error) => error.code !== "closed" && this.#lifecycle[EMIT]("error", error),
      );
    }
  }

  /** @param {string} name @param {api.JoinOptions<any>} options */
  #enter(name, options) {
    /** @type {Done} */
    let done = () => {};
    const joining = new Promise((resolve, reject) => {
      done = (error, room) => (error ? reject(error) : resolve(room));
    });
    const entry = { room: new Room(this.#core, this, name, options, done), joining };
    this.#rooms.set(name, entry);
    entry.room[ENTER]();
    return entry;
  }

  /** Takes up the namespace on a connection that has just been welcomed. */
  async [START]() {
    const { connectTimeout } = this.#core.options;
    const on = this.#core.current;
    if (!on || this.#open || this.#refusal || this.#askedOn === on) return;
    this.#askedOn = on;
    this.#startIn(connectTimeout);
    try {
      const token = await tokenOf(this.#auth ?? this.#core.auth);
      if (this.#core.current !== on || this.#open) return;
      const data = { token: token ?? undefined, deviceId: this.#core.deviceId };
      this.#core.say({ type: "connect", ns: this.#name, data }, on);
    } catch (cause) {
      const failure = new RealtimeError("auth_failed", "No token could be had", {
        retry: true,
        cause,
      });
      if (this.#core.current === on)
        this[REFUSED](cause instanceof RealtimeError ? cause : failure);
    }
  }

  [OPENED]() {
    if (this.#open) return;
    this.#open = true;
    this.#backoff.reset();
    this.#core.options.timers.clearTimeout(this.#timer);
    this.#inbox.begin();
    for (const { room } of this.#rooms.values()) room[ENTER]();
    // Also in a session that was resumed: what changed meanwhile was told to nobody.
    const watched = new Set([...this.#watches].flatMap((watch) => [...watch]));
    this.#tellWatched("watch-presence", [...watched]);
    this.#core.flush();
    this.#settle(null);
  }

  /** @param {RealtimeError} error that belongs to no message */
  [REFUSED](error) {
    this.#lifecycle[EMIT]("error", error);
    if (this.#open) return;
    if (error.retry) return this.#startIn(this.#backoff.next());
    this.#refusal = error;
    this[END](error);
  }

  /** @param {number} delay ms */
  #startIn(delay) {
    const { timers } = this.#core.options;
    timers.clearTimeout(this.#timer);
    this.#timer = timers.setTimeout(() => {
      this.#askedOn = null;
      void this[START]();
    }, delay);
  }

  [LOST]() {
    this.#open = false;
    this.#askedOn = null;
    this.#inbox.end();
    this.#core.options.timers.clearTimeout(this.#timer);
    for (const { room } of this.#rooms.values()) room[LOST]();
  }

  /** @param {RealtimeError} error */
  [END](error) {
    this[LOST]();
    for (const { room } of [...this.#rooms.values()]) this[DROP](room, error);
    this.#core.abandon(this, null, error);
    this.#settle(error);
  }

  /** @param {Room} room @param {RealtimeError} error */
  [DROP](room, error) {
    if (this.#rooms.get(room.name)?.room === room) this.#rooms.delete(room.name);
    room[END](error);
  }

  /** @param {string | undefined} room @returns {boolean} whether a message for it may go */
  [IS_OPEN](room) {
    return this.#open && (room === undefined || (this.#rooms.get(room)?.room.joined ?? true));
  }

  /** @param {Message} message a `joined` or `left` that answers nothing */
  [REPLACED](message) {
    const room = this.#rooms.get(message.roomId)?.room;
    if (!room) return;
    if (message.type === "joined") room[REPLACED](message);
    else this[DROP](room, notInRoom(String(message.reason ?? "The server took the client out")));
  }

  /** @param {Message} message an event */
  [RECEIVE](message) {
    const { type, room, data } = message;
    if (room !== undefined) return this.#rooms.get(room)?.room[RECEIVE](message);
    if (type === "presence-update" && isObject(data)) {
      for (const entry of this.#rooms.values()) entry.room[PRESENCE](data);
      this.#statuses[EMIT]("status", data);
    } else if (type === "private-message") {
      this.#inbox.take([data]);
    } else if (type === "pending-messages") {
      this.#inbox.take(data?.messages, data?.more === true);
    }
    this[HEAR](message);
  }

  /** @param {RealtimeError | null} error */
  #settle(error) {
    for (const done of this.#waiters.splice(0)) done(error);
  }
}

/**
 * The default namespace, and the connection under all of them.
 * @implements {api.Client}
 */
class Client extends Namespace {
  #core;

  /** @param {Core} core */
  constructor(core) {
    super(core, "", undefined, core.lifecycle);
    this.#core = core;
  }

  get sessionId() {
    return this.#core.session.sessionId;
  }
  get clientId() {
    return this.#core.session.clientId;
  }
  get userId() {
    return this.#core.session.userId;
  }
  get closeReason() {
    return this.#core.closeReason;
  }

  /** @returns {Promise<any>} */
  connect() {
    return new Promise((resolve, reject) => {
      this.#core.connect((error) => (error ? reject(error) : resolve(this)));
    });
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code = 1000, reason = "") {
    this.#core.close(code, reason);
  }

  /** @param {unknown} [token] @returns {Promise<any>} */
  async refresh(token) {
    const core = this.#core;
    // The next connection shall not come with the token this one replaces.
    if (token !== undefined && typeof core.auth !== "function") core.auth = token;
    const data = { token: token ?? (await tokenOf(core.auth)) };
    return core.ask(this, { type: "refresh", data }, COMMAND);
  }

  /** @param {string} name @param {{ auth?: unknown }} [options] @returns {any} */
  namespace(name, { auth } = {}) {
    if (name === "" || name === "/") return this;
    const known = this.#core.namespaces.get(name);
    if (known) return known;
    const namespace = new Namespace(this.#core, name, auth);
    void namespace[START]();
    return namespace;
  }

  async [START]() {
    this[OPENED]();
  }
}

// -------------------------------------------------------------------------------------- doors

/**
 * A client that is not connected yet: attach handlers first, then `connect()`.
 * @type {typeof api.createClient}
 */
export const createClient = (url, options = {}) =>
  /** @type {any} */ (new Client(new Core(url, options)));

/**
 * Connects and resolves with the client on the first `connected`; rejects with a RealtimeError
 * when the server refuses for good or `maxTries` are used up.
 * @type {typeof api.connect}
 */
export const connect = async (url, options = {}) => createClient(url, options).connect();
