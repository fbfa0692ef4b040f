// What a client says on a WebSocket to the servers of websocket.mjs and internal/websocket/testdata/peer.py, in Node.js or
// in a browser.

function connect(WebSocket, url, protocols) {
  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  const events = [];
  let wake = () => {};
  const push = (event) => {
    events.push(event);
    wake();
  };
  socket.onopen = () => push("open");
  socket.onmessage = ({ data }) => push(data);
  socket.onclose = ({ code, reason }) => push(`closed ${code} ${reason}`);
  socket.onerror = () => {};
  const next = async () => {
    while (events.length === 0) {
      await new Promise((resolve) => (wake = resolve));
    }
    return events.shift();
  };
  return { socket, next };
}

// Returns a line for each thing that was tried. A client that can neither fragment nor ping leaves these out.
export async function converse(WebSocket, url) {
  const lines = [];
  const { socket, next } = connect(WebSocket, url, ["realtime", "secret.sk-1"]);
  lines.push(`${await next()}, protocol ${socket.protocol}, extensions ${socket.extensions}`);
  const ask = async (name, message) => {
    socket.send(message);
    lines.push(`${name}: ${await next()}`);
  };
  await ask("text", "aé€😀");
  await ask("empty", "");
  socket.send(new Uint8Array([0, 255, 128]));
  lines.push(`binary: ${new Uint8Array(await next())}`);
  const large = "é".repeat(8 << 20);
  socket.send(large);
  lines.push(`large: ${(await next()) === large}`);
  await ask("its fragments", "fragments");
  await ask("its ping", "ping");
  if (socket.ping) {
    socket.send("a", { fin: false });
    socket.send("b", { fin: false });
    await ask("own fragments", "c");
    const pong = new Promise((resolve) => socket.once("pong", resolve));
    socket.ping("p");
    lines.push(`own ping: ${await pong}`);
  }
  socket.close(4001, "bye");
  lines.push(`close: ${await next()}`);

  for (const [name, message] of [
    ["its close", "close 4002 so be it"],
    ["its end", "terminate"],
    ["too large", "x".repeat((16 << 20) + 1)],
  ]) {
    const { socket, next } = connect(WebSocket, url, []);
    await next();
    socket.send(message);
    lines.push(`${name}: ${await next()}`);
  }
  return lines;
}
