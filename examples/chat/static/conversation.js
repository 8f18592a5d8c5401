/**
 * One conversation, a room's or a private one: what was said, what is on its way, what is new.
 * It knows neither the page nor the connection.
 *
 * A message of one's own is shown at once. It is `sending` until the server has it; the event and
 * the ack of it may come in either order, and after a reconnect one of them may come alone.
 */

const MAX_MESSAGES = 3_000;
/** ms after which a person who no longer says so has stopped writing */
const TYPING_ENDS = 6_000;

/**
 * @typedef {object} Message as the server sends it
 * @property {string} id
 * @property {string | null} userId
 * @property {any} user
 * @property {any} content
 * @property {string} [type]
 * @property {number} timestamp ms
 * @property {boolean} [edited]
 * @property {boolean} [deleted]
 * @property {boolean} [read] of a private message: by whom it is for
 * @property {string} [key] names its element on the page
 */
/**
 * @typedef {object} Draft a message of one's own that the server has not shown yet
 * @property {string} key
 * @property {string} messageId makes a second try harmless
 * @property {string} content
 * @property {number} timestamp
 * @property {"sending" | "sent" | "failed"} state
 * @property {string | null} id the server's, once known
 * @property {any} error
 */

export class Conversation {
  /** @type {Message[]} oldest first */
  messages = [];
  /** @type {Draft[]} oldest first; they stand below the messages */
  drafts = [];
  /** @type {Map<string, { name: string, until: number }>} who writes, by user id */
  typing = new Map();
  unread = 0;
  /** @type {any} the client's room, once joined */
  room = null;
  /** what the page says above the messages, if anything */
  notice = "";
  /** @type {any} why the room cannot be entered */
  problem = null;
  loading = true;
  loadingOlder = false;
  hasOlder = false;
  /** @type {string | null} id of the newest message that its author knows to be read */
  read = null;
  /** ends what the page does for this conversation alone */
  forget = () => {};
  /** @type {string} what stands in the field while another conversation is open */
  unsent = "";
  /** @type {number | null} where to ask for what is older; null for what is newest */
  before = null;
  /** @type {Map<string, Message>} */
  #byId = new Map();
  #filled = false;

  /**
   * @param {string} id the room's name, or `@` and the other one's user id
   * @param {string} title
   */
  constructor(id, title) {
    this.id = id;
    this.title = title;
  }

  get direct() {
    return this.id.startsWith("@");
  }

  /**
   * The server says what there is: at the first join, and when what was missed is lost.
   * @param {any[]} recent
   */
  replace(recent) {
    const lost = this.#filled && this.messages.some((message) => !recent.some((r) => r?.id === message.id));
    this.#filled = true;
    this.loading = false;
    this.problem = null;
    this.messages = [];
    this.#byId.clear();
    for (const message of recent) this.#append(message);
    // What was acknowledged and is not there any more is gone for everyone.
    this.drafts = this.drafts.filter(
      (draft) => draft.state !== "sent" && !(draft.id && this.#byId.has(draft.id)),
    );
    this.before = null;
    this.hasOlder = recent.length > 0;
    this.loadingOlder = false;
    if (lost) this.notice = "The server lost its history: earlier messages are gone.";
  }

  /**
   * A page of what is older, or the newest one, of which some is here already.
   * @param {{ messages: any[], more: boolean, first?: number | null }} page oldest first
   */
  prepend({ messages, more, first = messages[0]?.offset }) {
    const older = messages.filter(
      (message) => typeof message?.id === "string" && !this.#byId.has(message.id),
    );
    for (const message of older) this.#byId.set(message.id, message);
    this.messages.unshift(...older);
    const known = Number.isSafeInteger(first);
    if (known) this.before = /** @type {number} */ (first);
    this.hasOlder = more && known;
  }

  /**
   * @param {Message} message @param {boolean} mine
   * @returns {boolean} whether it is new
   */
  receive(message, mine) {
    if (typeof message?.id !== "string" || this.#byId.has(message.id)) return false;
    const draft =
      this.drafts.find((one) => one.id === message.id) ??
      (mine && this.drafts.find((one) => one.id === null && one.content === message.content));
    if (draft) this.#drop(draft);
    this.#append(draft ? { ...message, key: draft.key } : message);
    if (message.userId) this.typing.delete(message.userId);
    return !draft;
  }

  /** @param {string} content @returns {Draft} */
  write(content) {
    const messageId = newId();
    /** @type {Draft} */
    const draft = {
      key: `draft-${messageId}`,
      messageId,
      content,
      timestamp: Date.now(),
      state: "sending",
      id: null,
      error: null,
    };
    this.drafts.push(draft);
    return draft;
  }

  /**
   * The server has it. In a room its event shows where among the others it stands.
   * @param {Draft} draft @param {any} reply @param {{ userId: string | null, user: any }} me
   */
  confirm(draft, reply, me) {
    if (!this.drafts.includes(draft)) return;
    const { messageId: id, timestamp = draft.timestamp } = reply ?? {};
    if (typeof id !== "string" || this.#byId.has(id)) return this.#drop(draft);
    draft.state = "sent";
    draft.id = id;
    draft.timestamp = timestamp;
    if (!this.direct) return;
    this.#drop(draft);
    this.#append({ id, ...me, content: draft.content, timestamp, key: draft.key });
  }

  /** @param {Draft} draft @param {any} error */
  fail(draft, error) {
    draft.state = "failed";
    draft.error = error;
  }

  /** @param {Draft} draft */
  retry(draft) {
    draft.state = "sending";
    draft.error = null;
  }

  /** @param {Draft} draft */
  discard(draft) {
    this.#drop(draft);
  }

  /** @param {string} id @param {Partial<Message>} change @returns {boolean} */
  amend(id, change) {
    const message = this.#byId.get(id);
    if (!message) return false;
    Object.assign(message, change);
    return true;
  }

  /** Another device has shown a private message and what came before it. @param {string} id */
  readElsewhere(id) {
    const at = this.messages.findIndex((message) => message.id === id);
    if (at < 0) return;
    const other = this.id.slice(1);
    const left = this.messages.slice(at + 1).filter(({ userId }) => userId === other);
    this.unread = Math.min(this.unread, left.length);
  }

  /** The other one has read this private message of mine and what came before it. @param {string} id */
  readByOther(id) {
    const at = this.messages.findIndex((message) => message.id === id);
    const other = this.id.slice(1);
    for (const message of this.messages.slice(0, at + 1)) {
      if (message.userId !== other) message.read = true;
    }
  }

  /** @param {string} id @returns {Message | undefined} */
  message(id) {
    return this.#byId.get(id);
  }

  /** @param {string} userId @param {string} name */
  startTyping(userId, name) {
    this.typing.set(userId, { name, until: Date.now() + TYPING_ENDS });
  }

  /** @returns {string[]} names of those who write now */
  writers() {
    const now = Date.now();
    for (const [userId, { until }] of this.typing) if (until < now) this.typing.delete(userId);
    return [...this.typing.values()].map(({ name }) => name);
  }

  /** @param {Message} message */
  #append(message) {
    if (typeof message?.id !== "string" || this.#byId.has(message.id)) return;
    this.messages.push(message);
    this.#byId.set(message.id, message);
    if (this.messages.length <= MAX_MESSAGES) return;
    for (const old of this.messages.splice(0, MAX_MESSAGES / 10)) this.#byId.delete(old.id);
    const offset = /** @type {any} */ (this.messages[0]).offset;
    this.before = Number.isSafeInteger(offset) ? offset : null;
    this.hasOlder = true;
  }

  /** @param {Draft} draft */
  #drop(draft) {
    this.drafts = this.drafts.filter((one) => one !== draft);
  }
}

/** randomUUID is missing on pages without TLS. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
