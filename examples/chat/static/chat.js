/**
 * The page: who I am, the connection, the rooms, and what the buttons do.
 *
 * `conversation.js` has what was said, `timeline.js` shows it, `words.js` has the sentences. What
 * the server does not handle (`events` of /token) is not offered.
 */

import { createClient } from "./realtime/client.js";
import { Conversation, newId } from "./conversation.js";
import { arrange, byId, h, setText } from "./dom.js";
import { Timeline } from "./timeline.js";
import { initials, nameOf, plural, sentence, statusKind, statusWord, tint, typingSentence } from "./words.js";

const HOME = "chat/general";
const PAGE = 100; // messages asked for at once
const TYPING_EVERY = 2_000; // ms

/**
 * @typedef {object} Session who this window is, and which of that person's devices
 * @property {string} name
 * @property {string} token
 * @property {string[]} events
 * @property {string} device
 */
/** @type {Session | null} */
let session = null;
/** @type {any} */
let client = null;
/** @type {Map<string, Conversation>} those that are open, by id */
const conversations = new Map();
/** @type {Map<string, string>} rooms one may enter: title by name */
const rooms = new Map();
/** @type {Map<string, string>} statuses of people, by user id */
const statuses = new Map();
/** @type {Conversation} */
let current = new Conversation(HOME, "General");
/** @type {import("./conversation.js").Message | null} */
let edited = null;
let renewed = false;
let typedAt = 0;

const can = (/** @type {string} */ event) => session?.events.includes(event) ?? false;
const me = () => ({ userId: client?.userId ?? null, user: { name: session?.name } });

// ---------------------------------------------------------------------------------- who I am

/** @param {string} name @returns {Promise<Session>} */
async function fetchToken(name) {
  const response = await fetch(`token?name=${encodeURIComponent(name)}`);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? "The server did not answer as expected.");
  // The window's, not the browser's: what one window has shown, another one has not.
  const device = session?.device ?? newId();
  return { name: name.trim(), token: answer.token, events: answer.events, device };
}

/** This window's, so that two windows are two people. @param {Session | null} value */
function remember(value) {
  session = value;
  if (value) sessionStorage.setItem("chat", JSON.stringify(value));
  else sessionStorage.removeItem("chat");
}

byId("welcome-form").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const button = /** @type {HTMLButtonElement} */ (event.submitter ?? byId("welcome-form").querySelector("button"));
  button.disabled = true;
  setText(byId("welcome-problem"), "");
  try {
    remember(await fetchToken(byId("name").value));
    enter();
  } catch (error) {
    const offline = error instanceof TypeError;
    setText(byId("welcome-problem"), offline ? "The server cannot be reached." : sentence(error));
    byId("name").focus();
  } finally {
    button.disabled = false;
  }
});

/** What is open in this window, and what is new there: a reload changes none of it. */
function rememberOpen() {
  const open = [...conversations.values()].map(({ id, title, unread }) => ({ id, title, unread }));
  sessionStorage.setItem("chat-open", JSON.stringify({ open, shown: current.id }));
}

function openAgain() {
  const { open, shown } = JSON.parse(sessionStorage.getItem("chat-open") ?? "null") ?? { open: [] };
  for (const { id, title, unread } of open) {
    const known = conversations.get(id);
    if (!known && id.startsWith("@") && !can("private-message")) continue;
    const conversation = known ?? (id.startsWith("@") ? direct(id.slice(1), title) : new Conversation(id, title));
    conversation.unread = unread;
    conversations.set(id, conversation);
  }
  current = conversations.get(shown) ?? current;
}

byId("sign-out").addEventListener("click", () => {
  remember(null);
  sessionStorage.removeItem("chat-open");
  client.close();
  location.reload();
});

// -------------------------------------------------------------------------------- connection

function enter() {
  byId("welcome").hidden = true;
  byId("chat").hidden = false;
  client = createClient("realtime", { auth: () => session?.token, deviceId: session?.device });
  client.lifecycle.on("state", onState);
  client.lifecycle.on("reconnecting", ({ delay }) => countDown(delay));
  client.lifecycle.on("close", ({ code, willReconnect }) => {
    if (!willReconnect && code === 4401) void renew();
    render();
  });
  client.lifecycle.on("resumed", () => announce("You are connected again."));
  client.lifecycle.on("error", (error) => {
    // A server without the feature: what was tried is simply not there.
    if (error.code !== "unknown_event") trouble(sentence(error));
  });
  client.on("presence-update", (data) => onPresence(data));
  client.inbox(onPrivate);
  client.on("message-read", (data) => onRead(data));
  current = new Conversation(HOME, "General");
  conversations.set(HOME, current);
  openAgain();
  connect();
  seen();
  render();
  byId("field").focus();
}

/** Enters, and enters all rooms again when a closed client starts over. */
function connect() {
  client.connect().catch(() => {}); // the state tells
  joinLobby();
  for (const conversation of conversations.values()) join(conversation);
}

/** The server does not know my token any more, as after a restart without CHAT_SECRET. */
async function renew() {
  if (renewed || !session) return;
  renewed = true;
  try {
    remember(await fetchToken(session.name));
    connect();
  } catch {
    setTimeout(() => {
      renewed = false;
      void renew();
    }, 3_000);
  }
}

/** @param {string} state @param {string} previous */
function onState(state, previous) {
  if (state === "connected") {
    renewed = false;
    nextTry = 0;
    trouble("");
    statuses.clear();
    // The server may have forgotten it meanwhile.
    if (can("update-status") && byId("my-status").value !== "online") sendStatus();
  }
  if (state === "reconnecting" && previous === "connected") {
    announce("The connection is lost. Messages you write now are sent when it is back.");
  }
  render();
}

let nextTry = 0; // performance.now() of the next attempt
/** @type {any} */
let ticking;

/** @param {number} delay ms */
function countDown(delay) {
  nextTry = performance.now() + delay;
  clearInterval(ticking);
  ticking = setInterval(() => {
    if (client.state !== "reconnecting" && client.state !== "connecting") clearInterval(ticking);
    renderConnection();
  }, 1_000);
  renderConnection();
}

/** @returns {[kind: string, word: string, sentence: string]} */
function connection() {
  const seconds = Math.ceil((nextTry - performance.now()) / 1000);
  const soon = seconds > 1 ? ` Next try in ${seconds} s.` : " Trying now.";
  if (client.state === "connected") return ["online", "Connected", ""];
  if (client.state === "closed") {
    if (client.closeReason?.code === 4401) return ["connecting", "Connecting…", ""];
    return ["offline", "Disconnected", `Disconnected. ${sentence({ message: client.closeReason?.reason })}`];
  }
  if (!navigator.onLine) {
    return ["offline", "Offline", "You are offline. What you write is sent when you are back."];
  }
  if (client.state === "reconnecting") {
    return ["connecting", "Reconnecting…", `Connection lost.${soon} What you write is sent then.`];
  }
  return ["connecting", "Connecting…", nextTry ? `The server cannot be reached.${soon}` : ""];
}

addEventListener("online", () => render());
addEventListener("offline", () => render());
byId("banner-button").addEventListener("click", () => connect());

// ------------------------------------------------------------------------------------- rooms

function joinLobby() {
  client
    .join("lobby", {
      onRecent: (/** @type {any[]} */ list) => {
        rooms.clear();
        for (const room of list) listRoom(room);
        // A room somebody is in shall be found by others, also after the server forgot it.
        for (const { id, title, direct } of conversations.values()) {
          if (!direct && !rooms.has(id)) void client.room("lobby")?.send("create-room", { title }).catch(() => {});
        }
        render();
      },
      on: {
        "room-created": (/** @type {any} */ room) => {
          listRoom(room);
          render();
        },
      },
    })
    .catch(() => {});
}

/** @param {any} room */
function listRoom(room) {
  if (typeof room?.roomId === "string") rooms.set(room.roomId, String(room.title));
}

/** Shows a conversation, and enters its room if need be. @param {string} id @param {string} title */
function open(id, title) {
  stopEditing();
  sayTyping(false);
  current.unsent = byId("field").value;
  let conversation = conversations.get(id);
  if (!conversation) {
    conversation = new Conversation(id, title);
    conversations.set(id, conversation);
    join(conversation);
  }
  current = conversation;
  byId("field").value = current.unsent;
  resize();
  trouble("");
  seen();
  render();
}

/** @param {Conversation} conversation */
function join(conversation) {
  if (conversation.direct || conversation.room) return;
  client
    .join(conversation.id, {
      onRecent: (/** @type {any[]} */ recent) => {
        conversation.replace(recent);
        render();
      },
      on: handlers(conversation),
    })
    .then(
      (/** @type {any} */ room) => {
        conversation.room = room;
        room.lifecycle.on("members", () => render());
        room.lifecycle.on("left", (/** @type {any} */ { error }) => {
          conversation.room = null;
          if (client.state !== "closed") conversation.problem = error;
          render();
        });
        render();
      },
      (/** @type {any} */ error) => {
        conversation.loading = false;
        if (client.state !== "closed") conversation.problem = error;
        render();
      },
    );
}

/** @param {Conversation} conversation */
const handlers = (conversation) => ({
  "new-message": (/** @type {any} */ data, /** @type {any} */ event) => {
    take(conversation, { ...data, offset: event.offset });
  },
  "message-edited": (/** @type {any} */ data) => {
    conversation.amend(data?.messageId ?? data?.id, { content: data?.content, edited: true });
    render();
  },
  "message-deleted": (/** @type {any} */ data) => {
    conversation.amend(data?.messageId ?? data?.id, { content: "", deleted: true });
    render();
  },
  "user-typing": (/** @type {any} */ data) => {
    const member = conversation.room?.members.find((/** @type {any} */ one) => one.userId === data?.userId);
    if (data?.userId === client.userId || !(member ?? data?.user)) return;
    conversation.startTyping(data.userId, nameOf(data.user ?? member.user));
    render();
  },
  "user-stopped-typing": (/** @type {any} */ data) => {
    conversation.typing.delete(data?.userId);
    render();
  },
  "presence-update": onPresence,
  "user-left": (/** @type {any} */ data) => {
    conversation.typing.delete(data?.userId);
    render();
  },
});

/** A message is there. @param {Conversation} conversation @param {any} message */
function take(conversation, message) {
  const mine = message.userId !== null && message.userId === client.userId;
  if (conversation.receive(message, mine) && !mine) {
    const here = conversation === current;
    if (here) timeline.arrived();
    if ((!here || document.hidden) && !message.read) conversation.unread += 1;
    const who = nameOf(message.user);
    announce(here ? `${who}: ${message.content}` : `New message from ${who} in ${conversation.title}`);
  }
  render();
}

byId("leave-room").addEventListener("click", () => {
  const left = current;
  conversations.delete(left.id);
  left.forget();
  if (left.room) left.room.leave().catch(() => {});
  open(HOME, rooms.get(HOME) ?? "General");
  byId("title").focus();
});

async function loadOlder() {
  const conversation = current;
  const { id, direct, room, before, loadingOlder } = conversation;
  if (loadingOlder || (!direct && !room)) return;
  conversation.loadingOlder = true;
  render();
  const query = { limit: PAGE, ...(before !== null && { before }) };
  try {
    conversation.prepend(direct ? await privatePage(id.slice(1), query) : await room.history(query));
  } catch (/** @type {any} */ error) {
    conversation.hasOlder = false;
    if (conversation === current && error.code !== "unknown_event") {
      trouble(`Earlier messages could not be loaded. ${sentence(error)}`);
    }
  } finally {
    conversation.loadingOlder = false;
    render();
    if (conversation === current) seen();
  }
}

// ------------------------------------------------------------------------------------ people

/** @param {any} data */
function onPresence(data) {
  if (typeof data?.userId !== "string") return;
  if (statuses.size > 10_000) statuses.clear();
  statuses.set(data.userId, String(data.status ?? "online"));
  // Set on another device of mine; to be invisible looks like being offline, and stays as it is.
  const choice = byId("my-status").querySelector(`option[value="${CSS.escape(data.status ?? "")}"]`);
  if (data.userId === client.userId && choice) choice.selected = true;
  render();
}

/** @param {any} letter a private message @returns {any} the same as a message of a conversation */
const asMessage = (letter) => ({ ...letter, userId: letter.fromUserId, user: letter.fromUser });

/** @param {string} userId @param {object} query */
async function privatePage(userId, query) {
  const { messages, more } = await client.send("conversation", { userId, ...query });
  return { messages: messages.map(asMessage), more };
}

/** @param {any} letter to me, or from another device of mine */
function onPrivate(letter) {
  const mine = letter.fromUserId === client.userId;
  const other = mine ? letter.toUserId : letter.fromUserId;
  const conversation = direct(other, mine ? personName(other) : nameOf(letter.fromUser));
  take(conversation, asMessage(letter));
  if (conversation === current) seen();
}

/** @param {any} data a private message was read, by whom it was for or on another device of mine */
function onRead(data) {
  if (data?.userId === client.userId) {
    for (const conversation of conversations.values()) {
      if (conversation.direct) conversation.readElsewhere(data.messageId);
    }
  } else conversations.get(`@${data?.userId}`)?.readByOther(data.messageId);
  render();
}

/** @param {string} userId @param {string} name @returns {Conversation} the one with this person */
function direct(userId, name) {
  const id = `@${userId}`;
  let conversation = conversations.get(id);
  if (!conversation) {
    conversation = new Conversation(id, name);
    conversation.loading = false;
    conversation.hasOlder = can("conversation");
    conversations.set(id, conversation);
    if (can("watch-presence")) conversation.forget = client.watch([userId], onPresence);
  }
  return conversation;
}

/** @param {string} userId @returns {string} */
function personName(userId) {
  for (const { room } of conversations.values()) {
    const member = room?.members.find((/** @type {any} */ one) => one.userId === userId);
    if (member) return nameOf(member.user);
  }
  return nameOf(null);
}

function sendStatus() {
  const status = byId("my-status").value;
  client.send("update-status", { status }).catch((/** @type {any} */ error) => {
    if (error.code !== "unknown_event") trouble(sentence(error));
  });
}
byId("my-status").addEventListener("change", sendStatus);

// ----------------------------------------------------------------------------------- writing

/** @param {Conversation} conversation @param {import("./conversation.js").Draft} draft */
async function deliver(conversation, draft) {
  const { content, messageId } = draft;
  try {
    const reply = conversation.direct
      ? await client.send("private-message", { targetUserId: conversation.id.slice(1), content }, { messageId })
      : await client.send("message", { content }, { room: conversation.id, messageId });
    conversation.confirm(draft, reply, me());
  } catch (error) {
    conversation.fail(draft, error);
    if (conversation === current) announce(`Your message was not sent. ${sentence(error)}`);
  }
  render();
}

function submit() {
  const field = byId("field");
  const content = field.value.trim();
  if (content === "") return;
  sayTyping(false);
  trouble("");
  if (edited) return void saveEdit(edited, content);
  const draft = current.write(content);
  field.value = "";
  resize();
  timeline.follow();
  void deliver(current, draft);
  render();
}

byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  submit();
  byId("field").focus();
});

byId("field").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "Escape" && edited) {
    event.stopPropagation();
    stopEditing();
    render();
  } else if (event.key === "ArrowUp" && byId("field").value === "" && can("edit-message")) {
    const last = current.messages.findLast((one) => one.userId === client.userId && !one.deleted);
    if (last && !current.direct) {
      event.preventDefault();
      startEditing(last);
    }
  }
});

byId("field").addEventListener("input", () => {
  resize();
  renderComposer();
  sayTyping(byId("field").value.trim() !== "" && !edited);
});

function resize() {
  const field = byId("field");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 160)}px`;
}

/** Others see it for as long as it is said again and again. @param {boolean} writing */
function sayTyping(writing) {
  const now = performance.now();
  if (!can("typing") || current.direct || client?.state !== "connected") return;
  if (writing ? typedAt !== 0 && now - typedAt < TYPING_EVERY : typedAt === 0) return;
  typedAt = writing ? now : 0;
  const type = writing ? "typing" : "stop-typing";
  client.send(type, { roomId: current.id }, { room: current.id, volatile: true }).catch(() => {});
}

/** @param {import("./conversation.js").Message} message */
function startEditing(message) {
  if (!edited) current.unsent = byId("field").value;
  edited = message;
  byId("field").value = String(message.content);
  resize();
  byId("field").focus();
  render();
}

function stopEditing() {
  if (!edited) return;
  edited = null;
  byId("field").value = current.unsent;
  resize();
}

byId("editing-cancel").addEventListener("click", () => {
  stopEditing();
  byId("field").focus();
  render();
});

/** @param {import("./conversation.js").Message} message @param {string} content */
async function saveEdit(message, content) {
  const conversation = current;
  stopEditing();
  render();
  if (content === message.content) return;
  const before = { content: message.content, edited: message.edited };
  conversation.amend(message.id, { content, edited: true });
  await change(conversation, "edit-message", { messageId: message.id, content }, "changed", () =>
    conversation.amend(message.id, before),
  );
}

/** @param {import("./conversation.js").Message} message */
function askToRemove(message) {
  const dialog = byId("delete-dialog");
  const conversation = current;
  const content = String(message.content);
  setText(byId("delete-text"), content.length > 200 ? `${content.slice(0, 200)}…` : content);
  byId("delete-yes").onclick = () => {
    dialog.close();
    byId("field").focus();
    void change(conversation, "delete-message", { messageId: message.id }, "deleted", () => {});
  };
  dialog.showModal();
}

/**
 * @param {Conversation} conversation @param {string} type @param {object} data
 * @param {string} done what was to be done with the message @param {() => void} undo
 */
async function change(conversation, type, data, done, undo) {
  try {
    await client.send(type, { roomId: conversation.id, ...data }, { room: conversation.id });
  } catch (/** @type {any} */ error) {
    undo();
    if (error.code !== "unknown_event") trouble(`The message was not ${done}. ${sentence(error)}`);
  }
  render();
}

byId("delete-cancel").addEventListener("click", () => byId("delete-dialog").close());

const timeline = new Timeline({
  retry: (draft) => {
    current.retry(draft);
    byId("field").focus();
    void deliver(current, draft);
    render();
  },
  discard: (draft) => {
    current.discard(draft);
    byId("field").focus();
    render();
  },
  get edit() {
    return can("edit-message") ? startEditing : null;
  },
  get remove() {
    return can("delete-message") ? askToRemove : null;
  },
  older: () => void loadOlder(),
});

// --------------------------------------------------------------------------------- new rooms

byId("new-room").addEventListener("click", () => {
  byId("room-title").value = "";
  setText(byId("room-problem"), "");
  byId("room-dialog").showModal();
});
byId("room-cancel").addEventListener("click", () => byId("room-dialog").close());
byId("room-form").addEventListener("submit", async (/** @type {Event} */ event) => {
  event.preventDefault();
  try {
    const { roomId, title } = await client.send(
      "create-room", { title: byId("room-title").value }, { room: "lobby" },
    );
    listRoom({ roomId, title });
    byId("room-dialog").close();
    closeDrawers();
    open(roomId, title);
    byId("field").focus();
  } catch (error) {
    setText(byId("room-problem"), sentence(error));
  }
});

// ----------------------------------------------------------------------------------- drawers

const drawers = [
  { panel: byId("sidebar"), opener: byId("sidebar-open"), closer: byId("sidebar-close"), narrow: matchMedia("(max-width: 719px)") },
  { panel: byId("members-panel"), opener: byId("members-open"), closer: byId("members-close"), narrow: matchMedia("(max-width: 1079px)") },
];

for (const drawer of drawers) {
  drawer.opener.addEventListener("click", () => openDrawer(drawer));
  drawer.closer.addEventListener("click", () => closeDrawers());
  drawer.narrow.addEventListener("change", () => closeDrawers());
}
byId("backdrop").addEventListener("click", () => closeDrawers());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented) closeDrawers();
});

/** @param {typeof drawers[number]} drawer */
function openDrawer({ panel, opener, narrow }) {
  if (!narrow.matches) return;
  panel.classList.add("open");
  opener.setAttribute("aria-expanded", "true");
  byId("backdrop").hidden = false;
  byId("conversation").inert = true;
  panel.focus();
}

function closeDrawers() {
  byId("backdrop").hidden = true;
  byId("conversation").inert = false;
  for (const { panel, opener } of drawers) {
    if (!panel.classList.contains("open")) continue;
    panel.classList.remove("open");
    opener.setAttribute("aria-expanded", "false");
    opener.focus();
  }
}

// ----------------------------------------------------------------------------------- showing

let rendering = false;

/** Soon, and once for whatever else happens until then. */
function render() {
  if (rendering || !client) return;
  rendering = true;
  queueMicrotask(() => {
    rendering = false;
    renderConnection();
    renderLists();
    renderHeader();
    renderMembers();
    renderComposer();
    timeline.show(current, client.userId);
    setText(byId("typing"), typingSentence(current.writers()));
    const unread = [...conversations.values()].reduce((sum, one) => sum + one.unread, 0);
    rememberOpen();
    document.title = `${unread ? `(${unread}) ` : ""}${current.title} · Chat`;
  });
}
setInterval(() => current.typing.size > 0 && render(), 1_000);

function renderConnection() {
  const [kind, word, text] = connection();
  byId("link-dot").className = `dot ${kind}`;
  setText(byId("link-word"), word);
  const banner = byId("banner");
  banner.hidden = text === "";
  banner.className = `banner ${kind}`;
  setText(byId("banner-text"), text);
  byId("banner-button").hidden = client.state !== "closed";
}

/** @type {Map<string, any>} elements of the lists, by conversation */
const entries = new Map();

function renderLists() {
  const listed = new Map(rooms);
  for (const { id, title, direct } of conversations.values()) {
    if (!direct && !listed.has(id)) listed.set(id, title);
  }
  arrange(byId("rooms"), [...listed].map(([id, title]) => entry(id, title)));
  const directs = [...conversations.values()].filter(({ direct }) => direct);
  arrange(byId("directs"), directs.map(({ id, title }) => entry(id, title)));
  byId("direct").hidden = directs.length === 0;
  for (const id of entries.keys()) {
    if (!listed.has(id) && !conversations.has(id)) entries.delete(id);
  }
  const name = session?.name ?? "";
  setText(byId("my-name"), name);
  setText(byId("my-avatar"), initials(name));
  byId("my-avatar").className = `avatar tint-${tint(String(client.userId))}`;
  byId("my-status").hidden = !can("update-status");
  const elsewhere = [...conversations.values()].reduce((sum, one) => sum + (one === current ? 0 : one.unread), 0);
  badge(byId("elsewhere"), elsewhere);
}

/** @param {string} id @param {string} title */
function entry(id, title) {
  let element = entries.get(id);
  if (!element) {
    const click = () => {
      open(id, title);
      if (drawers[0]?.narrow.matches) {
        closeDrawers();
        byId("title").focus();
      } else byId("field").focus();
    };
    const sign = id.startsWith("@")
      ? h("span", { class: "sign dot", "aria-hidden": "true" })
      : h("span", { class: "sign", "aria-hidden": "true" }, "#");
    const count = h("span", { class: "badge", hidden: true });
    const name = h("span", { class: "name", dir: "auto" }, title);
    const status = id.startsWith("@") ? h("span", { class: "hidden-text" }) : null;
    const button = h("button", { type: "button", class: "entry", click }, sign, name, status, count);
    element = h("li", {}, button);
    entries.set(id, element);
  }
  const button = element.firstElementChild;
  const conversation = conversations.get(id);
  if (conversation === current) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  button.classList.toggle("entered", conversation !== undefined);
  if (id.startsWith("@")) {
    const status = statusOf(id.slice(1));
    button.firstElementChild.className = `sign dot ${statusKind(status)}`;
    setText(button.querySelector(".hidden-text"), ` ${statusWord(status)}`);
  }
  badge(button.lastElementChild, conversation?.unread ?? 0);
  return element;
}

/** @param {any} element @param {number} count */
function badge(element, count) {
  element.hidden = count === 0;
  if (count === 0) return element.replaceChildren();
  element.replaceChildren(count > 99 ? "99+" : String(count), h("span", { class: "hidden-text" }, " unread"));
}

/** @param {string} userId @returns {string} */
function statusOf(userId) {
  for (const { room } of conversations.values()) {
    const member = room?.members.find((/** @type {any} */ one) => one.userId === userId);
    if (member) return statuses.get(userId) ?? member.status ?? "online";
  }
  return statuses.get(userId) ?? "offline";
}

function renderHeader() {
  const { direct, id, title, room, loading, problem } = current;
  const members = room?.members ?? [];
  setText(byId("title"), direct ? title : `# ${title}`);
  const subtitle = direct
    ? statusWord(statusOf(id.slice(1)))
    : problem
      ? "not entered"
      : loading
        ? "entering…"
        : plural(members.length, "person here", "people here");
  setText(byId("subtitle"), subtitle);
  setText(byId("members-count"), String(members.length));
  byId("members-open").hidden = direct || !room;
  byId("members-panel").hidden = direct;
  byId("chat").classList.toggle("direct", direct);
  byId("leave-room").hidden = id === HOME;
  setText(byId("leave-room"), direct ? "Close" : "Leave");
}

/** @type {Map<string, any>} elements of the members, by user id */
const people = new Map();

function renderMembers() {
  const members = [...(current.room?.members ?? [])].sort((one, other) =>
    nameOf(one.user).localeCompare(nameOf(other.user)),
  );
  const ids = new Set(members.map(({ userId }) => userId));
  for (const id of people.keys()) if (!ids.has(id)) people.delete(id);
  arrange(byId("members"), members.map((member) => person(member)));
}

/** @param {any} member */
function person({ userId, user, status }) {
  const name = nameOf(user);
  const mine = userId === client.userId;
  const shown = statuses.get(userId) ?? status ?? "online";
  const made = JSON.stringify([name, mine, shown, can("private-message")]);
  const known = people.get(userId);
  if (known?.made === made) return known.element;
  const avatar = h(
    "span",
    { class: `avatar tint-${tint(String(userId))}`, "aria-hidden": "true" },
    initials(name),
    h("span", { class: `dot ${statusKind(shown)}` }),
  );
  const words = [
    h("span", { class: "name", dir: "auto" }, name),
    mine ? h("span", { class: "you" }, " (you)") : null,
    h("span", { class: statusKind(shown) === "online" && shown === "online" ? "hidden-text" : "status" }, ` ${statusWord(shown)}`),
  ];
  const content =
    mine || !can("private-message")
      ? h("div", { class: "person" }, avatar, ...words)
      : h("button", { type: "button", class: "person", title: `Write to ${name}`, click: () => writeTo(userId, name) }, avatar, ...words);
  const element = known?.element ?? h("li");
  element.replaceChildren(content);
  people.set(userId, { element, made });
  return element;
}

/** @param {string} userId @param {string} name */
function writeTo(userId, name) {
  closeDrawers();
  direct(userId, name);
  open(`@${userId}`, name);
  byId("field").focus();
}

function renderComposer() {
  const { direct, title, problem } = current;
  const label = `Message ${direct ? "" : "#"}${title}`;
  setText(byId("field-label"), label);
  byId("field").placeholder = label;
  byId("field").disabled = problem !== null;
  byId("send").disabled = problem !== null || byId("field").value.trim() === "";
  byId("editing").hidden = edited === null;
}

/** @param {string} text one sentence; empty for none */
function trouble(text) {
  setText(byId("trouble"), text);
}

/** For screen readers, which do not look at the log. @param {string} text */
function announce(text) {
  const announcer = byId("announcer");
  while (announcer.children.length >= 20) announcer.firstElementChild.remove();
  const line = h("p", {}, text.slice(0, 500));
  announcer.append(line);
  setTimeout(() => line.remove(), 10_000);
}

/** The conversation that is shown has been read, if anybody looks. */
function seen() {
  if (document.hidden) return;
  current.unread = 0;
  markRead();
  render();
}

/** Tells the author of the newest private message here that it has been read. */
function markRead() {
  if (!current.direct || !can("mark-read")) return;
  const last = current.messages.findLast((message) => message.userId !== client.userId);
  if (!last || last.id === current.read) return;
  current.read = last.id;
  client.send("mark-read", { messageId: last.id }).catch(() => {});
}
document.addEventListener("visibilitychange", seen);

// ---------------------------------------------------------------------------- another device

byId("other-device").addEventListener("click", () => {
  const link = new URL(location.href);
  // Behind the #, so that it is in no server's log.
  link.hash = String(new URLSearchParams({ name: session?.name ?? "", guest: session?.token ?? "" }));
  byId("device-link").value = link.href;
  byId("device-dialog").showModal();
  byId("device-link").select();
});
byId("device-close").addEventListener("click", () => byId("device-dialog").close());

/** @param {URLSearchParams} link of another device of the same person */
async function enterByLink(link) {
  history.replaceState(null, "", location.pathname + location.search);
  try {
    const made = await fetchToken(link.get("name") ?? "");
    remember({ ...made, token: link.get("guest") ?? "", device: newId() });
    enter();
  } catch (error) {
    byId("welcome").hidden = false;
    setText(byId("welcome-problem"), sentence(error));
  }
}

// ------------------------------------------------------------------------------------- start

try {
  session = JSON.parse(sessionStorage.getItem("chat") ?? "null");
} catch {
  session = null;
}
const link = new URLSearchParams(location.hash.slice(1));
if (link.has("guest")) {
  void enterByLink(link);
} else if (session) {
  enter();
} else {
  byId("welcome").hidden = false;
  byId("name").focus();
}
