import type { RequestOptions } from "node:https";
import type { WebSocketLike } from "./client.js";

export * from "./client.js";

/** A WebSocket for Node 20, used when the platform has none; subclass it to give it options. */
export class NodeWebSocket implements WebSocketLike {
  constructor(
    url: string | URL,
    protocols?: string | string[],
    options?: {
      /** Bytes of the largest message. Default 16 MiB. */
      maxPayload?: number;
      /** ms to wait for the peer's half of the close. Default 3 000. */
      closeTimeout?: number;
      /** What `https.request` takes besides: headers, ca. */
      request?: RequestOptions;
    },
  );
  binaryType: string;
  protocol: string;
  readyState: number;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string | ArrayBufferView | ArrayBuffer): void;
  close(code?: number, reason?: string): void;
}
