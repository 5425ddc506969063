// The `ws` package on Node. node ws.js PORT [echo]
const { randomUUID } = require("node:crypto");
const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");
const [port, mode] = [Number(process.argv[2]), process.argv[3]];
const http = createServer();
const server = new WebSocketServer({ server: http, perMessageDeflate: false });
server.on("connection", (socket) => {
  const from = randomUUID();
  socket.on("error", () => {});
  const name = { name: "ws", version: "8" };
  if (mode !== "echo") socket.send(JSON.stringify({ type: "welcome", client: from, server: name }));
  socket.on("message", (bytes) => {
    const data = bytes.toString();
    if (mode === "echo") return socket.send(data);
    const time = new Date().toISOString();
    const frame = JSON.stringify({ type: "message", channel: "broadcast", time, from, data });
    for (const client of server.clients) client.send(frame);
  });
});
http.listen({ host: "127.0.0.1", port, backlog: 65535 });
