/** A socket and a clock that do what a test tells them, and nothing by themselves. */
import { connect, createClient } from "../../../starlette_realtime/static/client.js";

/** Lets everything that is already decided happen. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

export class FakeTimers {
  #now = 1_000;
  #last = 0;
  #timers = new Map();

  setTimeout = (fn, ms) => {
    this.#timers.set(++this.#last, { fn, at: this.#now + ms });
    return this.#last;
  };

  clearTimeout = (timer) => void this.#timers.delete(timer);

  now = () => this.#now;

  get count() {
    return this.#timers.size;
  }

  /** Milliseconds until each timer that is set, soonest first. */
  get delays() {
    return [...this.#timers.values()].map(({ at }) => at - this.#now).sort((a, b) => a - b);
  }

  /** Runs what is due within `ms`, in its order, and lets promises go on in between. */
  async advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers]
        .filter(([, { at }]) => at <= end)
        .sort((a, b) => a[1].at - b[1].at);
      if (due.length === 0) break;
      const [id, { fn, at }] = due[0];
      this.#timers.delete(id);
      this.#now = Math.max(this.#now, at);
      fn();
      await settle();
    }
    this.#now = end;
    await settle();
  }
}

/** @param {object} [options] for the client */
export function world(options = {}) {
  const sockets = [];
  const timers = new FakeTimers();

  class FakeSocket {
    readyState = 0;
    protocol = "";
    bufferedAmount = 0;
    frames = [];
    closedWith = null;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      sockets.push(this);
    }

    send(text) {
      if (this.readyState !== 1) throw new Error("not open");
      this.frames.push(text);
    }

    close(code, reason) {
      if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
        throw new RangeError("InvalidAccessError");
      }
      this.closedWith = { code, reason };
      this.readyState = 2;
    }

    /** The messages the client has sent, in order. */
    get sent() {
      return this.frames.flatMap((frame) => frame.split("\n")).map((line) => JSON.parse(line));
    }

    /** What was sent since the last call, without hello, ping and pong. */
    fresh() {
      const all = this.sent.filter(({ type }) => !["connect", "ping", "pong"].includes(type));
      const fresh = all.slice(this.seen ?? 0);
      this.seen = all.length;
      return fresh;
    }

    async open(protocol = "realtime.v2") {
      this.protocol = protocol;
      this.readyState = 1;
      this.onopen?.({});
      await settle();
    }

    async receive(...messages) {
      this.onmessage?.({ data: messages.map((m) => JSON.stringify(m)).join("\n") });
      await settle();
    }

    async raw(data) {
      this.onmessage?.({ data });
      await settle();
    }

    async drop(code = 1006, reason = "") {
      this.readyState = 3;
      this.onclose?.({ code, reason });
      await settle();
    }

    async welcome(members = {}, protocol) {
      await this.open(protocol);
      await this.receive({ ...CONNECTED, ...members });
    }
  }

  const all = { WebSocket: FakeSocket, timers, random: () => 0.5, deviceId: "d1", ...options };
  return {
    sockets,
    timers,
    options: all,
    /** The newest socket. */
    get socket() {
      return sockets.at(-1);
    },
    create: (url = "ws://host/realtime") => createClient(url, all),
    connect: (url = "ws://host/realtime") => connect(url, all),
    /** A client that is connected, and its first socket. */
    async connected(members, protocol) {
      const client = createClient("ws://host/realtime", all);
      const promise = client.connect();
      await settle();
      await sockets[0].welcome(members, protocol);
      await promise;
      return client;
    },
    /** A room that is joined; the reply's members may be given. */
    async joined(client, reply = {}, name = "r", options = {}) {
      const promise = client.join(name, options);
      await settle();
      const { id } = sockets.at(-1).fresh().at(-1);
      await sockets.at(-1).receive({ ...JOINED, roomId: name, id, ...reply });
      const room = await promise;
      await timers.advance(0);
      return room;
    },
    /** Waits out the delay and brings the next connection to its welcome. */
    async comeBack(members = { resumed: true }) {
      const before = sockets.length;
      while (sockets.length === before) await timers.advance(Math.max(1, timers.delays[0] ?? 1));
      await sockets.at(-1).welcome(members);
      return sockets.at(-1);
    },
  };
}

export const CONNECTED = {
  type: "connected",
  sessionId: "s1",
  clientId: "c1",
  userId: "ann",
  serverTime: 1767225600000,
  pingInterval: 25000,
  pingTimeout: 20000,
  maxPayload: 1000000,
  resume: "token-1",
  resumed: false,
};

export const JOINED = {
  type: "joined",
  members: [],
  recentMessages: [],
  position: { epoch: "e", offset: 0 },
};

/** Collects the calls of an event: `const seen = collect(room, "tick")`. */
export function collect(source, type) {
  const seen = [];
  source.on(type, (...args) => seen.push(args[0]));
  return seen;
}

/** What a rejected promise was rejected with. */
export async function failure(promise) {
  return promise.then(
    (value) => {
      throw new Error(`it was fulfilled with ${JSON.stringify(value)}`);
    },
    (error) => error,
  );
}

/** Runs `fn` while console.error collects instead of writing; gives what was reported. */
export async function reported(fn) {
  const reports = [];
  const original = console.error;
  console.error = (error) => reports.push(error);
  try {
    await fn();
  } finally {
    console.error = original;
  }
  return reports;
}
