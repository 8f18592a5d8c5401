// A reporter for `node --test` with a line for each test that was skipped, or expected to fail.
// scripts/test hands them on to tests/support/ci.py.

/** @param {AsyncIterable<{ type: string, data: any }>} events */
export default async function* leftOut(events) {
  for await (const { type, data } of events) {
    if (type !== "test:pass" && type !== "test:fail") continue;
    for (const kind of ["skip", "todo"]) {
      // The reason, or true where there is none.
      const why = data[kind];
      if (why !== undefined && why !== false) {
        yield `${data.name}: ${typeof why === "string" && why ? why : kind}\n`.replace(/\n(?=.)/g, " ");
      }
    }
  }
}
