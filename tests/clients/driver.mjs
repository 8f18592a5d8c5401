/**
 * A visitor in Node, told what to do on stdin: `{"code"}` a line, the body of an async function of
 * `visitor`; its result as `{"value"}` or `{"error"}` on stdout. Arguments: the client's module and
 * the server's address.
 */
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { Visitor } from "./visitor.mjs";

const [path, origin] = process.argv.slice(2);
const visitor = new Visitor(await import(pathToFileURL(path)), origin);
const AsyncFunction = (async () => {}).constructor;

const reply = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
process.on("unhandledRejection", (error) => {
  console.error("unhandled:", error);
  process.exit(3);
});
reply({ value: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  const { code } = JSON.parse(line);
  try {
    reply({ value: (await new AsyncFunction("visitor", code)(visitor)) ?? null });
  } catch (error) {
    reply({ error: String(error?.stack ?? error) });
  }
}
visitor.client?.close();
