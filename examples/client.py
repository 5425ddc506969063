"""Prints what a lastcall server sends, one JSON object a line: python3 client.py ws://127.0.0.1:8000/ws

Needs the package websockets, version 10 or later (Debian: python3-websockets; elsewhere: pip install websockets).
"""

import asyncio, json, random, sys, time
import websockets

NEVER_AGAIN = {1002, 1003, 1007, 1009}  # a fault of this client: it would happen again
REFUSED = {400, 403, 426}  # the answer stays the same until someone changes the client or the server


async def stay_connected(url, handle):
    failures = 0
    while True:
        socket, after, least = None, None, 0
        try:
            async with websockets.connect(url) as socket:
                opened = time.monotonic()
                async for text in socket:
                    message = json.loads(text)
                    handle(message)
                    if message["type"] == "shutdown":  # nothing to finish: leave
                        after = message["reconnect"]["after_ms"] / 1000
                        break
        except (OSError, asyncio.TimeoutError, websockets.WebSocketException) as error:
            print(f"not connected: {error}", file=sys.stderr)
            answer = getattr(error, "response", error)  # websockets before 13 has the status in the error
            status = getattr(answer, "status_code", None)
            if status in REFUSED:
                sys.exit(f"refused for good: {status}")
            least = 5 if status == 503 else 0  # Retry-After
        if socket and socket.close_code in NEVER_AGAIN:
            sys.exit(f"closed for good: {socket.close_code} {socket.close_reason}")
        if socket and time.monotonic() - opened >= 30:
            failures = 0
        delay = min(30, 2 ** min(failures, 5)) * random.uniform(0.5, 1) if after is None else after
        failures += 1
        await asyncio.sleep(least + delay)


if __name__ == "__main__":
    try:
        asyncio.run(stay_connected(sys.argv[1], lambda message: print(json.dumps(message), flush=True)))
    except KeyboardInterrupt:
        pass
