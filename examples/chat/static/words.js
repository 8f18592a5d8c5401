/** What the page says: sentences for errors and states, names, times. */

const SENTENCES = {
  access_denied: "You may not enter this room.",
  auth_failed: "The server does not know you any more.",
  closed: "The connection is closed.",
  disconnected: "There is no connection.",
  handler_error: "Something went wrong on the server.",
  invalid_message: "The server could not read it.",
  limit_exceeded: "That is more than the server allows.",
  not_in_room: "You are not in this room any more.",
  queue_full: "Too many messages are waiting already.",
  rate_limited: "That was too fast. Wait a moment.",
  timeout: "The server did not answer.",
  too_large: "It is too long.",
  unavailable: "The server is busy. Try again in a moment.",
};

/** @param {any} error @returns {string} a sentence for people */
export function sentence(error) {
  const known = SENTENCES[/** @type {keyof SENTENCES} */ (error?.code)];
  if (known) return known;
  const text = String(error?.message || "That did not work");
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** @param {any} user what others may see of a user @returns {string} */
export function nameOf(user) {
  return typeof user?.name === "string" && user.name ? user.name : "Guest";
}

/** @param {string} name @returns {string} one or two letters */
export function initials(name) {
  const letters = new Intl.Segmenter().segment(name);
  const words = name.split(/\s+/).filter(Boolean);
  const first = [...letters][0]?.segment ?? "?";
  const second = words.length > 1 ? [...(words.at(-1) ?? "")][0] : "";
  return (first + second).toUpperCase();
}

/** @param {string} id @returns {number} one of eight tints, always the same for the same id */
export function tint(id) {
  let sum = 0;
  for (const char of id) sum = (sum * 31 + (char.codePointAt(0) ?? 0)) >>> 0;
  return sum % 8;
}

const TIME = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat([], { weekday: "long", day: "numeric", month: "long" });
const FULL = new Intl.DateTimeFormat([], { dateStyle: "full", timeStyle: "medium" });

/** @param {number} at ms since the epoch */
export const clock = (at) => TIME.format(at);
/** @param {number} at ms since the epoch */
export const fullTime = (at) => FULL.format(at);
/** @param {number} at ms since the epoch */
export const dayKey = (at) => new Date(at).toDateString();

/** @param {number} at ms since the epoch @param {number} now the same @returns {string} */
export function dayName(at, now) {
  if (dayKey(at) === dayKey(now)) return "Today";
  const yesterday = new Date(now);
  yesterday.setDate(yesterday.getDate() - 1);
  return dayKey(at) === yesterday.toDateString() ? "Yesterday" : DAY.format(at);
}

/** @param {string[]} names of people who write at this moment @returns {string} */
export function typingSentence(names) {
  if (names.length === 0) return "";
  if (names.length === 1) return `${names[0]} is writing…`;
  if (names.length === 2) return `${names[0]} and ${names[1]} are writing…`;
  return "Several people are writing…";
}

/** @param {number} count @param {string} one @param {string} many */
export const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;

const STATUS = { online: "online", away: "away", busy: "busy", offline: "offline", invisible: "invisible" };

/** @param {string | undefined} status @returns {string} also for a text of the user's own */
export const statusWord = (status) =>
  STATUS[/** @type {keyof STATUS} */ (status)] ?? status ?? STATUS.online;

/** @param {string | undefined} status @returns {string} which of the dots to show */
export const statusKind = (status) => (status !== undefined && status in STATUS ? status : "online");
