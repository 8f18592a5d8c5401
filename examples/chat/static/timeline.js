/** Shows one conversation: bubbles, grouped by author and day, drafts below, the scroll position. */

import { arrange, byId, h, icon, linked, setText } from "./dom.js";
import { clock, dayKey, dayName, fullTime, initials, nameOf, plural, sentence, tint } from "./words.js";

/** @import { Conversation, Message, Draft } from "./conversation.js" */

/** ms between two messages of one author that still stand together */
const TOGETHER = 5 * 60_000;
/** px from an end of the scroll that still count as being there */
const NEAR = 80;

/**
 * @typedef {object} Actions what the buttons of a message do
 * @property {(draft: Draft) => void} retry
 * @property {(draft: Draft) => void} discard
 * @property {((message: Message) => void) | null} edit null when the server cannot
 * @property {((message: Message) => void) | null} remove
 * @property {() => void} older
 */

export class Timeline {
  #log = byId("log");
  #list = byId("messages");
  #older = byId("older");
  #notice = byId("notice");
  #empty = byId("empty");
  #jump = byId("jump");
  #actions;
  /** @type {Conversation | null} */
  #shown = null;
  /** @type {Map<string, { element: HTMLElement, made: string }>} by key */
  #elements = new Map();
  #atEnd = true;
  #unseen = 0;

  /** @param {Actions} actions */
  constructor(actions) {
    this.#actions = actions;
    this.#log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.addEventListener("click", () => {
      this.#toEnd(true);
      byId("field").focus();
    });
    this.#older.addEventListener("click", () => actions.older());
    new ResizeObserver(() => this.#atEnd && this.#toEnd()).observe(this.#log);
    // Without a pointer that hovers, a tap on a bubble shows what can be done with it.
    this.#list.addEventListener("click", (/** @type {any} */ event) => {
      const item = event.target.closest(".message");
      if (item && !event.target.closest("button, a")) this.#toggle(item);
    });
    const unseen = (/** @type {any} */ event) => {
      const item = event.target.closest(".side")?.closest(".message:not(.open)");
      if (!item || event.pointerType !== "touch") return;
      event.stopPropagation(); // what nobody sees, nobody means
      this.#toggle(item);
    };
    this.#list.addEventListener("click", unseen, { capture: true });
  }

  /** @param {Element} item */
  #toggle(item) {
    for (const other of this.#list.querySelectorAll(".message.open")) {
      if (other !== item) other.classList.remove("open");
    }
    item.classList.toggle("open");
  }

  /** A message came that the reader may have scrolled away from. */
  arrived() {
    if (!this.#atEnd) this.#unseen += 1;
  }

  /** Whether the reader sees the newest message. */
  get atEnd() {
    return this.#atEnd;
  }

  follow() {
    this.#atEnd = true;
  }

  /** @param {Conversation} conversation @param {string | null} myId */
  show(conversation, myId) {
    if (this.#shown !== conversation) {
      this.#shown = conversation;
      this.#elements.clear();
      this.#list.replaceChildren();
      this.#atEnd = true;
      this.#unseen = 0;
    }
    const anchor = this.#list.querySelector(".message");
    const top = anchor?.offsetTop;
    this.#render(conversation, myId);
    // What is put in above must not move what is being read.
    if (this.#atEnd) this.#toEnd();
    else if (anchor?.isConnected) this.#log.scrollTop += anchor.offsetTop - top;
    this.#jump.hidden = this.#atEnd;
    setText(byId("jump-text"), this.#unseen ? plural(this.#unseen, "new message", "new messages") : "Newest");
    this.#loadMore(conversation);
  }

  /** @param {Conversation} conversation @param {string | null} myId */
  #render(conversation, myId) {
    const { messages, drafts, direct, notice, hasOlder, loadingOlder, loading, problem } = conversation;
    this.#older.hidden = !hasOlder;
    this.#older.disabled = loadingOlder;
    setText(this.#older, loadingOlder ? "Loading…" : "Show earlier messages");
    this.#notice.hidden = notice === "";
    setText(this.#notice, notice);
    this.#renderEmpty(conversation, messages.length + drafts.length === 0 && !hasOlder && !loading || !!problem);
    this.#log.setAttribute("aria-busy", String(loading || loadingOlder));

    /** @type {any[]} */
    const items = [...messages, ...drafts.map((draft) => ({ ...draft, userId: myId, draft }))];
    const now = Date.now();
    const read = direct ? items.findLast((item) => item.read && item.userId === myId) : undefined;
    /** @type {HTMLElement[]} */
    const wanted = [];
    /** @type {Set<string>} */
    const keys = new Set();
    items.forEach((item, index) => {
      const before = items[index - 1];
      const after = items[index + 1];
      const newDay = !before || dayKey(before.timestamp) !== dayKey(item.timestamp);
      if (newDay) {
        const key = `day-${dayKey(item.timestamp)}`;
        keys.add(key);
        wanted.push(this.#day(key, dayName(item.timestamp, now)));
      }
      const key = item.key ?? item.id;
      keys.add(key);
      const place = {
        mine: item.userId !== null && item.userId === myId,
        first: newDay || !together(before, item),
        last: !after || !together(item, after),
        direct,
        read: item === read,
      };
      wanted.push(this.#message(key, item, place));
    });
    for (const key of this.#elements.keys()) if (!keys.has(key)) this.#elements.delete(key);
    arrange(this.#list, wanted);
  }

  /** @param {Conversation} conversation @param {boolean} visible */
  #renderEmpty({ title, direct, problem }, visible) {
    this.#empty.hidden = !visible;
    if (!visible) return;
    const [head, text] = this.#empty.children;
    setText(head, problem ? "You are not in this room" : "Nothing here yet");
    setText(text, problem ? sentence(problem) : direct ? `Write something to ${title}.` : "Write the first message.");
  }

  /** @param {string} key @param {string} name */
  #day(key, name) {
    const element = this.#elements.get(key)?.element ?? h("li", { class: "day" }, h("span"));
    setText(/** @type {Element} */ (element.firstElementChild), name);
    this.#elements.set(key, { element, made: "" });
    return element;
  }

  /**
   * @param {string} key @param {any} item
   * @param {{ mine: boolean, first: boolean, last: boolean, direct: boolean, read: boolean }} place
   */
  #message(key, item, place) {
    const { draft, content, edited, deleted, timestamp, user } = item;
    const { edit, remove } = this.#actions;
    const made = JSON.stringify([
      place, content, edited, deleted, timestamp, draft?.state, draft?.error?.code, !!edit, !!remove, nameOf(user),
    ]);
    const known = this.#elements.get(key);
    if (known?.made === made) return known.element;
    const element = known?.element ?? h("li", { "data-key": key });
    const held = element.contains(document.activeElement) ? document.activeElement : null;
    const open = element.classList.contains("open");
    element.className = [
      "message",
      place.mine && "mine",
      place.first && "first",
      place.last && "last",
      deleted && "deleted",
      draft && draft.state,
      open && "open",
    ].filter(Boolean).join(" ");
    element.replaceChildren(...this.#inside(item, place));
    // A button that was focused is made anew: the focus stays with it, or with the message field.
    const action = held?.getAttribute("data-action");
    if (action) (element.querySelector(`[data-action="${action}"]`) ?? byId("field")).focus();
    this.#elements.set(key, { element, made });
    return element;
  }

  /** @param {any} item @param {{ mine: boolean, first: boolean, last: boolean, direct: boolean, read: boolean }} place */
  #inside(item, { mine, first, direct, read }) {
    const { draft, userId, user, content, edited, deleted, timestamp } = item;
    const name = mine ? "You" : nameOf(user);
    const at = draft?.state === "sending" || draft?.state === "failed" ? null : timestamp;
    const time = at && h("time", { datetime: new Date(at).toISOString(), title: fullTime(at) }, clock(at));
    const avatar = mine
      ? null
      : h("span", { class: `avatar tint-${tint(String(userId))}`, "aria-hidden": "true" }, initials(name));
    const meta = h(
      "p",
      { class: first ? "meta" : "meta hidden-text" },
      h("span", { class: mine ? "author hidden-text" : "author", dir: "auto" }, name),
      h("span", { class: "hidden-text" }, ": "),
      first && time,
    );
    const text = h("p", { class: "text", dir: "auto" });
    if (deleted) text.append("Message deleted");
    else text.append(linked(typeof content === "string" ? content : JSON.stringify(content)));
    if (edited && !deleted) text.append(h("span", { class: "edited" }, " (edited)"));
    const bubble = h("div", { class: "bubble" }, text);
    const side = h("div", { class: "side" }, first || !time ? null : time);
    if (mine && !draft && !deleted && !direct) {
      const { edit, remove } = this.#actions;
      if (edit) side.append(button("edit", "Edit this message", () => edit(item)));
      if (remove) side.append(button("trash", "Delete this message", () => remove(item)));
    }
    return [avatar, h("div", { class: "body" }, meta, h("div", { class: "row" }, bubble, side), this.#state(draft, read))].filter(Boolean);
  }

  /** @param {Draft | undefined} draft @param {boolean} read and what stands above, too */
  #state(draft, read) {
    if (read) return h("p", { class: "state" }, "Read");
    if (draft?.state === "sending") return h("p", { class: "state" }, "Sending…");
    if (draft?.state !== "failed") return null;
    return h(
      "p",
      { class: "state" },
      `Not sent. ${sentence(draft.error)} `,
      h("button", { type: "button", "data-action": "retry", click: () => this.#actions.retry(draft) }, "Try again"),
      h("button", { type: "button", "data-action": "discard", click: () => this.#actions.discard(draft) }, "Discard"),
    );
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    this.#atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (this.#atEnd) this.#unseen = 0;
    this.#jump.hidden = this.#atEnd;
    if (this.#shown) this.#loadMore(this.#shown);
  }

  /** @param {Conversation} conversation */
  #loadMore({ hasOlder, loadingOlder, loading }) {
    const near = this.#log.scrollTop < 2 * NEAR;
    if (near && hasOlder && !loadingOlder && !loading) this.#actions.older();
  }

  /** @param {boolean} [smooth] */
  #toEnd(smooth = false) {
    this.#atEnd = true;
    this.#unseen = 0;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#log.scrollTo({ top: this.#log.scrollHeight, behavior: smooth && !calm ? "smooth" : "instant" });
  }
}

/** @param {any} one @param {any} next */
const together = (one, next) =>
  one.userId === next.userId &&
  next.timestamp - one.timestamp < TOGETHER &&
  dayKey(one.timestamp) === dayKey(next.timestamp);

/** @param {string} name @param {string} label @param {() => void} click */
const button = (name, label, click) =>
  h("button", { type: "button", class: "plain small", "data-action": name, "aria-label": label, title: label, click }, icon(name));
