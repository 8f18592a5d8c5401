// Bun: its native publish/subscribe.
const compress = process.env.BENCH_DEFLATE === "1";
const server = Bun.serve({
  port: Number(process.argv[2]),
  hostname: "127.0.0.1",
  fetch(request, server) {
    if (server.upgrade(request)) return;
    return new Response("Upgrade Required", { status: 426 });
  },
  websocket: {
    perMessageDeflate: compress,
    open(ws) {
      ws.subscribe("hot");
      ws.send("ready");
    },
    message(ws, message) {
      server.publish("hot", message, compress);
    },
  },
});
