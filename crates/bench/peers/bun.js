// Bun's own WebSocket server (uWebSockets). bun bun.js PORT [echo]
const [port, mode] = [Number(process.argv[2]), process.argv[3]];
const server = Bun.serve({
  hostname: "127.0.0.1",
  port,
  fetch(request, server) {
    if (server.upgrade(request, { data: { id: crypto.randomUUID() } })) return undefined;
    return new Response("", { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      if (mode === "echo") return;
      socket.subscribe("all");
      const server = { name: "bun", version: Bun.version };
      socket.send(JSON.stringify({ type: "welcome", client: socket.data.id, server }));
    },
    message(socket, data) {
      if (mode === "echo") return void socket.send(data);
      const time = new Date().toISOString();
      server.publish("all", JSON.stringify({ type: "message", channel: "broadcast", time, from: socket.data.id, data }));
    },
  },
});
