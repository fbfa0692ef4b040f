// The peers of the integration tests of internal/websocket that use the package ws: `node websocket.mjs client <url>` prints
// what the conversation has come to, `node websocket.mjs server` its port and how each connection was closed.
import { WebSocket, WebSocketServer } from "ws";
import { converse } from "./conversation.mjs";

if (process.argv[2] === "client") {
  console.log((await converse(WebSocket, process.argv[3])).join("\n"));
} else {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true });
  server.on("listening", () => console.log(server.address().port));
  server.on("connection", (socket) => {
    socket.on("error", () => {}); // without a listener it would end the process
    socket.on("close", (code, reason) => console.log(`closed ${code} ${reason}`));
    socket.on("message", (data, isBinary) => {
      const message = data.toString();
      const close = data.length < 100 && /^close (\d+) (.*)$/.exec(message);
      if (close) {
        socket.close(Number(close[1]), close[2]);
      } else if (message === "terminate") {
        socket.terminate();
      } else if (message === "fragments") {
        socket.send("x", { fin: false });
        socket.send("y", { fin: false });
        socket.send("z");
      } else if (message === "ping") {
        socket.once("pong", (payload) => socket.send(`ponged ${payload}`));
        socket.ping("q");
      } else {
        socket.send(data, { binary: isBinary });
      }
    });
  });
}
