/**
 * Types of the starlette-realtime client.
 *
 * Two maps make it precise, and both have a default that admits everything: `Events` gives the
 * payload of each event by its name, `Commands` what each `send` takes and what its ack brings.
 */

export type AnyEvents = Record<string, any>;
export type AnyCommands = Record<string, { data: any; reply: any }>;
export type Unsubscribe = () => void;

/** `"idle"` is a created client before its first `connect()`. */
export type State = "idle" | "connecting" | "connected" | "reconnecting" | "closed";

/** What a recovering client hands back to the server: exactly what it was given. */
export interface Position {
  readonly epoch: string;
  readonly offset: number;
  readonly nonce?: string;
}

export interface RoomMember {
  readonly userId: string;
  readonly user: any;
  readonly status?: string;
}

/** What the server's private messages are; `offset` is its place among all of the receiver's. */
export interface PrivateMessage {
  readonly id: string;
  readonly fromUserId: string;
  readonly fromUser: any;
  readonly toUserId: string;
  readonly content: any;
  /** ms since 1970. */
  readonly timestamp: number;
  readonly read: boolean;
  readonly offset: number;
}

/** An event as it arrived. `room` and `offset` are missing where the server gave none. */
export interface ReceivedEvent<Type extends string = string, Data = any> {
  readonly type: Type;
  readonly room?: string;
  readonly offset?: number;
  readonly data: Data;
}

/** The end of one connection: the protocol's close code, and whether the client comes back. */
export interface CloseReason {
  readonly code: number;
  readonly reason: string;
  readonly willReconnect: boolean;
}

/** A refusal, from the server or by the client itself. */
export class RealtimeError extends Error {
  constructor(
    code: string,
    message: string,
    details?: { retry?: boolean; closeCode?: number; cause?: unknown },
  );
  readonly name: "RealtimeError";
  /**
   * A code of the protocol or of the app, or one of the client's own: `timeout`, `disconnected`,
   * `closed`, `queue_full`, `too_large`, `invalid_message`, `not_in_room`, `auth_failed`,
   * `connect_failed`, `unavailable`.
   */
  readonly code: string;
  /** The same request may succeed later. */
  readonly retry: boolean;
  /** The close code of the connection, when its end was the reason. */
  readonly closeCode: number | undefined;
}

type Handler<Type extends string, Data> = (data: Data, event: ReceivedEvent<Type, Data>) => unknown;

type Name<Map> = keyof Map & string;
type DataOf<Commands, Type extends Name<Commands>> = Commands[Type] extends { data: infer Data }
  ? Data
  : undefined;
type ReplyOf<Commands, Type extends Name<Commands>> = Commands[Type] extends { reply: infer Reply }
  ? Reply
  : unknown;
/** The payload may be left out where `undefined` would do. */
type Payload<Data, Options> = undefined extends Data
  ? [data?: Data, options?: Options]
  : [data: Data, options?: Options];

/** The client's own events: they have this place to themselves, so no server event can clash. */
export interface Lifecycle<Events extends object> {
  on<Type extends Name<Events>>(type: Type, fn: LifecycleHandler<Events[Type]>): Unsubscribe;
  once<Type extends Name<Events>>(type: Type, fn: LifecycleHandler<Events[Type]>): Unsubscribe;
  /** Without `fn`, every handler of the type. */
  off<Type extends Name<Events>>(type: Type, fn?: LifecycleHandler<Events[Type]>): void;
}
type LifecycleHandler<Args> = Args extends any[] ? (...args: Args) => unknown : never;

export interface ClientLifecycle {
  state: [state: State, previous: State];
  /** A connection ended, for now or for good. */
  close: [closeReason: CloseReason];
  /**
   * The next try begins in `delay` ms; `attempt` counts from 1 since the last connection, and
   * `closeReason` is why the one before it failed. Told before the first connection, too.
   */
  reconnecting: [next: { attempt: number; delay: number; closeReason: CloseReason }];
  /** A connection is back; `resumed: false` when the server began a new session. */
  resumed: [session: { sessionId: string | null; resumed: boolean }];
  /** What went wrong outside of any one call: it rejected no promise. */
  error: [error: RealtimeError];
}

export interface RoomLifecycle {
  /** The list of members changed. */
  members: [members: RoomMember[]];
  /** After a reconnect: what was missed follows as ordinary events. */
  recovered: [position: Position | null];
  /** What was missed is lost: show these instead of what there was. */
  replaced: [recentMessages: any[]];
  /** The room could not be joined again; `left` follows. */
  error: [error: RealtimeError];
  /** The client is not in the room any more, whoever wanted it. */
  left: [goodbye: { reason: string; error: RealtimeError }];
}

export interface RoomSendOptions {
  /** ms for the answer, counted while a connection carries the message; 0 for no limit. Default 10 000. */
  timeout?: number;
  /** `false`: resolve as soon as the message was handed to the socket or the queue. */
  ack?: boolean;
  /** At most 64 characters. Each message with an ack has one by itself. */
  messageId?: string;
  /** Never queued and never sent again; `ack` is then `false` unless asked for. */
  volatile?: boolean;
}

export interface SendOptions extends RoomSendOptions {
  room?: string;
}

export interface JoinOptions<Events extends object = AnyEvents> {
  /** Where the app already is: recover from here. */
  since?: Position | null;
  /** Called with the recent messages at the join, and again whenever they replace what there was. */
  onRecent?: (messages: any[], room: Room<any, any>) => unknown;
  /** Handlers that are there from the first event. */
  on?: { [Type in Name<Events>]?: Handler<Type, Events[Type]> };
  /** ms for the answer. Default 10 000. */
  timeout?: number;
}

export interface HistoryQuery {
  /** Backwards from this offset; without `before` and `after`, from the end. */
  before?: number;
  /** Forwards from this offset. */
  after?: number;
  limit?: number;
}

export interface HistoryPage {
  messages: any[];
  position: Position;
  more: boolean;
  /** Offset of the page's oldest event: `before: first` asks for what is older. */
  first: number | null;
}

export interface MembersQuery {
  cursor?: string | number | null;
  limit?: number;
}

export interface MembersPage {
  members: RoomMember[];
  count: number;
  cursor: string | number | null;
}

interface Listener<Events extends object> {
  /** Handlers run in the order of their registration; one that throws is reported, no more. */
  on<Type extends Name<Events>>(type: Type, fn: Handler<Type, Events[Type]>): Unsubscribe;
  once<Type extends Name<Events>>(type: Type, fn: Handler<Type, Events[Type]>): Unsubscribe;
  /** Without `fn`, every handler of the type. */
  off<Type extends Name<Events>>(type: Type, fn?: Handler<Type, Events[Type]>): void;
  /** Answers the server's questions of this type; a later handler takes the place of the former. */
  handle<Type extends Name<Events>>(
    type: Type,
    fn: (data: Events[Type], event: ReceivedEvent<Type, Events[Type]>) => unknown,
  ): Unsubscribe;
}

export interface Room<
  Events extends object = AnyEvents,
  Commands extends object = AnyCommands,
> extends Listener<Events> {
  readonly name: string;
  /** The server has the client in the room at this moment. */
  readonly joined: boolean;
  /** What the last join said; `undefined` when it was a plain one. */
  readonly recovered: boolean | undefined;
  /** Of the last event handlers have seen; `null` in a room that keeps none. */
  readonly position: Position | null;
  readonly members: RoomMember[];
  /** As the last join gave them; events since then are not added. */
  readonly recentMessages: any[];
  readonly lifecycle: Lifecycle<RoomLifecycle>;

  /** Resolves with the ack's data. */
  send<Type extends Name<Commands>>(
    type: Type,
    ...payload: Payload<DataOf<Commands, Type>, RoomSendOptions>
  ): Promise<ReplyOf<Commands, Type>>;
  broadcast(data: any, options?: RoomSendOptions): Promise<any>;
  leave(): Promise<void>;
  history(query?: HistoryQuery): Promise<HistoryPage>;
  membersPage(query?: MembersQuery): Promise<MembersPage>;
}

export interface Namespace<
  Events extends object = AnyEvents,
  Commands extends object = AnyCommands,
> extends Listener<Events> {
  /** `""` is the default one. */
  readonly name: string;
  readonly state: State;
  readonly lifecycle: Lifecycle<ClientLifecycle>;

  /** Resolves when the server has admitted the client; asks again after a refusal. */
  connect(): Promise<this>;
  /** Resolves with the ack's data. */
  send<Type extends Name<Commands>>(
    type: Type,
    ...payload: Payload<DataOf<Commands, Type>, SendOptions>
  ): Promise<ReplyOf<Commands, Type>>;
  /** The same room for the same name, until it is left. */
  join<RoomEvents extends object = AnyEvents, RoomCommands extends object = AnyCommands>(
    name: string,
    options?: JoinOptions<RoomEvents>,
  ): Promise<Room<RoomEvents, RoomCommands>>;
  leave(name: string): Promise<void>;
  /** The room, if the client is in it or on its way. */
  room<RoomEvents extends object = AnyEvents, RoomCommands extends object = AnyCommands>(
    name: string,
  ): Room<RoomEvents, RoomCommands> | undefined;

  /**
   * Private messages to this user, and those sent from the user's other devices, what waited
   * included: one after the other, each once by its id, acknowledged when `fn` has returned and the
   * promise it gave is fulfilled. One for which it fails, and what follows it, comes again with the
   * next connection. There is one such handler; attach it before `connect()`, or right after.
   */
  inbox(fn: (message: PrivateMessage) => unknown): Unsubscribe;
  /** Status of these users, now and whenever it changes, over all connections. */
  watch(
    userIds: Iterable<string>,
    fn: (presence: { userId: string; status: string }) => unknown,
  ): Unsubscribe;
}

export interface Client<
  Events extends object = AnyEvents,
  Commands extends object = AnyCommands,
> extends Namespace<Events, Commands> {
  readonly sessionId: string | null;
  readonly clientId: string | null;
  /** `null` for an anonymous client. */
  readonly userId: string | null;
  /** Of the last connection that ended. */
  readonly closeReason: CloseReason | null;

  /** Ends it for good and rejects what waits; `code` is 1000 or 3000 to 4999. */
  close(code?: number, reason?: string): void;
  /** Extends the connection with a new token: the one given, or what `auth` brings. */
  refresh(token?: unknown): Promise<{ success: boolean; expiresAt: number | null }>;
  namespace<NsEvents extends object = AnyEvents, NsCommands extends object = AnyCommands>(
    name: string,
    options?: { auth?: Auth },
  ): Namespace<NsEvents, NsCommands>;
}

/** A token as the server's auth backend wants it, or what is called for one before each connection. */
export type Auth = unknown | (() => unknown);

export interface Timers {
  setTimeout(fn: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
  /** ms, never going backwards */
  now(): number;
}

/** As much of the standard WebSocket as the client uses. */
export interface WebSocketLike {
  binaryType: string;
  readonly protocol: string;
  readonly readyState: number;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

export interface Options {
  auth?: Auth;
  /**
   * Names this device among those of the user: private messages are acknowledged for each by itself.
   * Default: a random one that a page keeps in localStorage, so that its tabs are one device;
   * elsewhere, one of this client's own.
   */
  deviceId?: string;
  /** Default: the platform's. */
  WebSocket?: WebSocketClass;
  /** ms for the answer to a message. Default 10 000. */
  timeout?: number;
  /** ms from the start of a try to `connected`, the token included. Default 10 000. */
  connectTimeout?: number;
  /**
   * ms without a first connection after which `connect()` rejects with `unavailable`, and no further
   * try is made. Once there was a connection only `maxTries` counts. Default 30 000.
   */
  giveUpAfter?: number;
  /** Tries in a row without a connection before giving up. Default Infinity. */
  maxTries?: number;
  /** ms; the n-th delay is between 0 and min(backoffCap, backoffBase * 2^n). Default 500. */
  backoffBase?: number;
  /** ms. Default 30 000. */
  backoffCap?: number;
  /** Messages that wait for a connection, their turn or their answer. Default 1 000. */
  maxQueue?: number;
  /** Bytes that wait so, or for the network. Default 16 000 000. */
  maxQueueBytes?: number;
  /** For tests. */
  timers?: Timers;
  /** For tests: a number from 0 up to 1. */
  random?: () => number;
}

/** A client that is not connected yet: attach handlers, then `connect()`. */
export function createClient<
  Events extends object = AnyEvents,
  Commands extends object = AnyCommands,
>(url: string | URL, options?: Options): Client<Events, Commands>;

/**
 * `url` is the mount path, relative to the page or absolute (http, https, ws, wss). Resolves on
 * the first `connected`; rejects with a `RealtimeError` when the server refuses for good, or when
 * there was no connection within `giveUpAfter` or `maxTries`.
 */
export function connect<Events extends object = AnyEvents, Commands extends object = AnyCommands>(
  url: string | URL,
  options?: Options,
): Promise<Client<Events, Commands>>;
