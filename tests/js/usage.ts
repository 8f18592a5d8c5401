/** Type-checked, never run: what an app writes must compile, and what it must not write must not. */
import {
  connect,
  createClient,
  RealtimeError,
  type Client,
  type CloseReason,
  type Position,
  type Room,
  type RoomMember,
} from "../../starlette_realtime/static/client.js";
import * as node from "../../starlette_realtime/static/node.js";

interface ChatMessage {
  id: string;
  content: string;
}
interface ChatEvents {
  "new-message": ChatMessage;
  "user-typing": { userId: string };
}
interface ChatCommands {
  message: { data: { content: string }; reply: { success: boolean; messageId: string } };
  typing: { data: undefined; reply: null };
}

type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function is<_T extends true>(): void {}

export async function untyped(): Promise<void> {
  const client = await connect("/realtime", { auth: () => fetch("/token").then((r) => r.text()) });
  const room = await client.join("chat/7");
  const unsubscribe = room.on("anything", (data, event) => [data.whatever, event.offset]);
  is<Same<typeof unsubscribe, () => void>>();
  await room.send("message", { content: "hello" });
  await room.send("typing");
  const reply = await client.send(
    "move",
    { x: 1 },
    { timeout: 500, room: "r", messageId: "m", volatile: true },
  );
  is<Same<typeof reply, any>>();
  const { messages, more, position } = await room.history({ before: 5, limit: 10 });
  is<Same<typeof position, Position>>();
  void [messages, more];
  const page = await room.membersPage({ cursor: null });
  is<Same<typeof page.members, RoomMember[]>>();
  const stop = client.inbox(async ({ id, content, offset }) => [id, content, offset]);
  const unwatch = client.watch(new Set(["ann"]), ({ userId, status }) => [userId, status]);
  is<Same<typeof stop | typeof unwatch, () => void>>();
  createClient("/realtime", { deviceId: "phone" });
  // @ts-expect-error a name, not a number
  createClient("/realtime", { deviceId: 7 });
}

export async function typed(): Promise<void> {
  const client = createClient<{ tick: number }, { sum: { data: number[]; reply: number } }>(
    "wss://host/realtime",
    {
      maxTries: 3,
      maxQueue: 10,
      random: () => 0,
    },
  );
  is<Same<Awaited<ReturnType<typeof client.connect>>, typeof client>>();
  client.on("tick", (data, event) => {
    is<Same<typeof data, number>>();
    is<Same<typeof event.type, "tick">>();
  });
  const sum = await client.send("sum", [1, 2]);
  is<Same<typeof sum, number>>();
  // @ts-expect-error there is no such event
  client.on("tock", () => {});
  // @ts-expect-error the payload is a list of numbers
  await client.send("sum", "12");
  // @ts-expect-error the payload is missing
  await client.send("sum");
  // @ts-expect-error there is no such command
  await client.send("product", [1]);

  const room = await client.join<ChatEvents, ChatCommands>("chat/7", {
    since: { epoch: "e", offset: 3 },
    onRecent: (messages) => messages.length,
    on: { "new-message": (message) => message.content },
  });
  is<Same<typeof room, Room<ChatEvents, ChatCommands>>>();
  room.once("new-message", (message) => is<Same<typeof message, ChatMessage>>());
  room.handle("user-typing", async ({ userId }) => userId);
  const sent = await room.send("message", { content: "hi" }, { ack: true });
  is<Same<typeof sent.messageId, string>>();
  await room.send("typing");
  // @ts-expect-error content is a string
  await room.send("message", { content: 5 });
  // @ts-expect-error a room's message goes to that room
  await room.send("message", { content: "" }, { room: "other" });
  // @ts-expect-error the position is the client's to keep
  room.position = null;
  await client.join<ChatEvents>("chat/8", {
    // @ts-expect-error there is no such event
    on: { nothing: () => {} },
  });

  const admin = client.namespace<{ stats: { rooms: number } }>("/admin", { auth: "token" });
  admin.on("stats", ({ rooms }) => is<Same<typeof rooms, number>>());
  await (await admin.connect()).join("lobby");
  // @ts-expect-error a namespace has no connection of its own to close
  admin.close();
}

export function lifecycle(client: Client, room: Room): void {
  client.lifecycle.on("state", (state, previous) => {
    is<Same<typeof state, typeof previous>>();
    // @ts-expect-error there is no such state
    return state === "open";
  });
  client.lifecycle.once("close", (reason) => is<Same<typeof reason, CloseReason>>());
  client.lifecycle.on("reconnecting", ({ attempt, delay }) => attempt + delay);
  client.lifecycle.on("resumed", ({ resumed }) => is<Same<typeof resumed, boolean>>());
  client.lifecycle.on("error", (error) => is<Same<typeof error, RealtimeError>>());
  // @ts-expect-error lifecycle events are a closed list
  client.lifecycle.on("tick", () => {});
  room.lifecycle.on("replaced", (messages) => messages.length);
  room.lifecycle.on("recovered", (position) => position?.offset);
  room.lifecycle.on("members", (members) => is<Same<typeof members, RoomMember[]>>());
  room.lifecycle.on("left", ({ reason, error }) => [reason, error.code]);
  room.lifecycle.off("left");
  client.close(4000, "bye");
  const { code, retry, closeCode } = new RealtimeError("busy", "Busy", { retry: true });
  is<Same<[typeof code, typeof retry, typeof closeCode], [string, boolean, number | undefined]>>();
}

/** The platforms' sockets fit where a socket class is wanted. */
export const fits = [
  createClient("/realtime", { WebSocket }),
  node.createClient("ws://host/realtime", { WebSocket: node.NodeWebSocket }),
  node.createClient("ws://host/realtime", {
    WebSocket: class extends node.NodeWebSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols, { request: { headers: { "User-Agent": "bot" } } });
      }
    },
  }),
];
