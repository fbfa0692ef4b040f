"""What testdata/sdk/websocket.mjs does, with the package websockets: `peer.py client <url>`, `peer.py server`."""

import asyncio
import sys

import websockets


async def serve(socket):
    try:
        async for message in socket:
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                await socket.close(int(code), reason)
            elif message == "terminate":
                socket.transport.abort()
            elif message == "fragments":
                await socket.send(iter(["x", "y", "z"]))
            elif message == "ping":
                await (await socket.ping(b"q"))
                await socket.send("ponged q")
            else:
                await socket.send(message)
    except websockets.ConnectionClosed:
        pass
    print(f"closed {socket.close_code} {socket.close_reason}", flush=True)


async def closed(socket):
    try:
        return f"message {await socket.recv()!r}"
    except websockets.ConnectionClosed:
        return f"closed {socket.close_code} {socket.close_reason}"


async def converse(url):
    def connect(**options):
        return websockets.connect(url, max_size=None, **options)

    async with connect(subprotocols=["realtime", "secret.sk-1"]) as socket:
        extensions = ",".join(e.name for e in socket.extensions)
        print(f"open, protocol {socket.subprotocol}, extensions {extensions}")

        async def ask(name, message):
            await socket.send(message)
            print(f"{name}: {await socket.recv()}")

        await ask("text", "aé€😀")
        await ask("empty", "")
        await socket.send(bytes([0, 255, 128]))
        print("binary:", ",".join(map(str, await socket.recv())))
        large = "é" * (8 << 20)
        await socket.send(large)
        print("large:", str(await socket.recv() == large).lower())
        await ask("its fragments", "fragments")
        await ask("its ping", "ping")
        await ask("own fragments", iter(["a", "b", "c"]))
        await (await socket.ping(b"p"))
        print("own ping: p")
        await socket.close(4001, "bye")
        print(f"close: closed {socket.close_code} {socket.close_reason}")
    for name, message in [
        ("its close", "close 4002 so be it"),
        ("its end", "terminate"),
        ("too large", "x" * ((16 << 20) + 1)),
    ]:
        async with connect() as socket:
            try:
                await socket.send(message)
            except websockets.ConnectionClosed:
                pass
            print(f"{name}: {await closed(socket)}")


async def main():
    if sys.argv[1] == "client":
        await converse(sys.argv[2])
        return
    async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=["realtime"], max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
