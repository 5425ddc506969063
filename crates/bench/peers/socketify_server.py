"""uWebSockets in socketify. python socketify_server.py PORT [echo]"""
import datetime
import json
import sys
import uuid

from socketify import App, AppListenOptions, CompressOptions, OpCode

port, echo = int(sys.argv[1]), sys.argv[2:] == ["echo"]
app = App()


def opened(ws):
    if not echo:
        ws.subscribe("all")
        server = {"name": "socketify", "version": "0"}
        ws.send(json.dumps({"type": "welcome", "client": ws.get_user_data(), "server": server}), OpCode.TEXT)


def message(ws, text, opcode):
    if echo:
        ws.send(text, opcode)
        return
    time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"
    sender = ws.get_user_data()
    frame = {"type": "message", "channel": "broadcast", "time": time, "from": sender, "data": text}
    app.publish("all", json.dumps(frame, separators=(",", ":")), OpCode.TEXT)


def upgrade(response, request, context):
    key = request.get_header("sec-websocket-key")
    protocol = request.get_header("sec-websocket-protocol")
    extensions = request.get_header("sec-websocket-extensions")
    response.upgrade(key, protocol, extensions, context, str(uuid.uuid4()))


app.ws("/*", {
    "compression": CompressOptions.DISABLED,
    "upgrade": upgrade,
    "open": opened,
    "message": message,
})
app.listen(AppListenOptions(port=port, host="127.0.0.1"))
app.run()
