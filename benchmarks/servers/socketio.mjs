// Socket.IO: one room, io.to(room).emit.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const compress = process.env.BENCH_DEFLATE === "1";
const io = new Server(http, { perMessageDeflate: compress ? { threshold: 1024 } : false });

if (process.env.BENCH_REDIS) {
  const { createClient } = await import("redis");
  const { createAdapter } = await import("@socket.io/redis-adapter");
  const publisher = createClient({ url: process.env.BENCH_REDIS });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  io.adapter(createAdapter(publisher, subscriber));
}

io.on("connection", (socket) => {
  socket.on("join", (room) => {
    socket.join(room);
    socket.emit("joined");
  });
  socket.on("msg", (data) => io.to("hot").emit("msg", data));
});

http.listen(Number(process.argv[2]), "127.0.0.1", 4096);
