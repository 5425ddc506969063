// Stays connected to a lastcall server, in a browser or in Node.js 22 or later:
//
//     import { stayConnected } from "./client.js";
//     stayConnected("ws://127.0.0.1:8000/ws", (message) => console.log(message));

const NEVER_AGAIN = [1002, 1003, 1007, 1009]; // a fault of this client: it would happen again

// `isIdle` says whether the client has nothing to finish when the server is about to close.
export function stayConnected(url, handle, isIdle = () => true) {
  let failures = 0;
  const connect = () => {
    const socket = new WebSocket(url);
    let opened = Infinity, after = null;
    socket.onopen = () => { opened = performance.now(); };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      handle(message);
      if (message.type !== "shutdown") return;
      after = message.reconnect.after_ms;
      if (isIdle()) socket.close(); // else at a later notice, or when the server closes
    };
    socket.onclose = ({ code, reason }) => {
      if (NEVER_AGAIN.includes(code)) throw new Error(`closed for good: ${code} ${reason}`);
      if (performance.now() - opened >= 30000) failures = 0;
      const growing = Math.min(30000, 1000 * 2 ** failures) * (0.5 + Math.random() / 2);
      failures += 1;
      setTimeout(connect, after ?? growing);
    };
  };
  connect();
}
