// ws: a set of sockets, a loop, and one string for all of them.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const http = createServer();
const compress = process.env.BENCH_DEFLATE === "1";
const wss = new WebSocketServer({ server: http, perMessageDeflate: compress ? { threshold: 1024 } : false });

wss.on("connection", (socket) => {
  socket.on("message", (data) => {
    const text = data.toString();
    for (const client of wss.clients) client.send(text);
  });
  socket.send("ready");
});

http.listen(Number(process.argv[2]), "127.0.0.1", 4096);
