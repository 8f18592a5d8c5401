/**
 * Somebody in a chat, in a page or in Node: does with the client what a plain chat page does, and
 * keeps a record of what came of it.
 */
export class Visitor {
  /** What a page would show: the messages' contents, from `onRecent` and then one by one. */
  shown = [];
  /** Of each room event, its position's offset, duplicates and all. */
  offsets = [];
  /** What was sent, by outcome. */
  acked = [];
  failed = [];
  states = [];
  closes = [];
  tries = [];
  errors = [];
  resumed = [];
  /** "recovered", "replaced", "left" and "error" of the room. */
  roomEvents = [];

  constructor(realtime, origin) {
    this.realtime = realtime;
    this.origin = origin;
  }

  /** @param {string} user @param {string} [extra] further arguments of /token */
  async token(user, extra = "") {
    const response = await fetch(`${this.origin}/token?user=${user}${extra}`, { cache: "no-store" });
    if (!response.ok) throw new Error(`no token: ${response.status}`);
    return response.text();
  }

  /** Makes the client, which comes back fast so that tests do. */
  create(user, options = {}) {
    const { createClient } = this.realtime;
    this.client = createClient(`${this.origin}/realtime`, {
      auth: () => this.token(user),
      backoffBase: 20,
      backoffCap: 200,
      timeout: 20_000,
      ...options,
    });
    const { lifecycle } = this.client;
    lifecycle.on("state", (state) => this.states.push(state));
    lifecycle.on("close", (reason) => this.closes.push(reason));
    lifecycle.on("reconnecting", (next) => this.tries.push(next));
    lifecycle.on("resumed", (session) => this.resumed.push(session));
    lifecycle.on("error", (error) => this.errors.push(error.code));
    return this.client;
  }

  async connect(user, options) {
    return this.create(user, options).connect();
  }

  /** Connects and enters a room. */
  async enter(user, name = "chat/1", options = {}) {
    await this.connect(user, options);
    return this.join(name);
  }

  async join(name) {
    const show = (message, { offset }) => {
      this.offsets.push(offset);
      this.shown.push(message.content);
    };
    this.room = await this.client.join(name, {
      on: { "new-message": show },
      onRecent: (messages) => {
        this.shown = messages.map(({ content }) => content);
      },
    });
    for (const type of ["recovered", "replaced", "left", "error"]) {
      this.room.lifecycle.on(type, () => this.roomEvents.push(type));
    }
    return this.room;
  }

  /** Sends messages without waiting for their acks. */
  say(...contents) {
    for (const content of contents) {
      this.room.send("message", { content }).then(
        () => this.acked.push(content),
        (error) => this.failed.push([content, error.code]),
      );
    }
  }

  /** Sends `count` numbered messages, some at a time, until they are all acknowledged. */
  async chatter(name, count) {
    for (let i = 0; i < count; i += 5) {
      const some = Array.from({ length: Math.min(5, count - i) }, (_, k) => `${name}-${i + k}`);
      this.say(...some);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** What a promise was rejected with. */
  async failure(promise) {
    const value = await promise.then(
      (value) => ({ value: JSON.stringify(value) }),
      ({ name, code, message, retry, closeCode = null }) => ({ name, code, message, retry, closeCode }),
    );
    if ("value" in value) throw new Error(`it was fulfilled with ${value.value}`);
    return value;
  }
}
