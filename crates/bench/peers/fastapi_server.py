"""FastAPI and uvicorn, as in their documentation. python fastapi_server.py PORT [echo]"""
import datetime
import json
import sys
import uuid

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

port, echo = int(sys.argv[1]), sys.argv[2:] == ["echo"]
app = FastAPI()
clients: set[WebSocket] = set()


@app.websocket("/ws")
async def endpoint(socket: WebSocket):
    await socket.accept()
    sender = str(uuid.uuid4())
    clients.add(socket)
    if not echo:
        server = {"name": "fastapi", "version": "0"}
        await socket.send_text(json.dumps({"type": "welcome", "client": sender, "server": server}))
    try:
        while True:
            text = await socket.receive_text()
            if echo:
                await socket.send_text(text)
                continue
            time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"
            frame = json.dumps({"type": "message", "channel": "broadcast", "time": time, "from": sender, "data": text},
                               separators=(",", ":"))
            for client in list(clients):
                await client.send_text(frame)
    except WebSocketDisconnect:
        clients.discard(socket)


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", ws_per_message_deflate=False, backlog=65535,
            ws_ping_interval=None)
