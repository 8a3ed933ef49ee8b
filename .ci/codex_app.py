"""Codex as an editor has it, `codex app-server`, and its host, whose tool the model is offered under the tool's own name.

One turn; prints what the server says of it, line by line JSON. usage: codex_app.py MODEL WORDS [flags of codex]
"""

import json
import subprocess
import sys

from weather import TOOL, WEATHER

model, words, *flags = sys.argv[1:]
server = subprocess.Popen(["codex", "app-server", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def send(message):
    print(json.dumps(message), file=server.stdin, flush=True)


def heard():
    line = server.stdout.readline()
    assert line, "the server left in the middle of a turn"
    print(line, end="")
    message = json.loads(line)
    if message.get("method") == "item/tool/call":
        send({"id": message["id"], "result": {"success": True, "contentItems": [{"type": "inputText", "text": WEATHER}]}})
    return message


def ask(method, params):
    send({"id": method, "method": method, "params": params})
    while (answer := heard()).get("id") != method:
        pass
    return answer["result"]


ask("initialize", {"clientInfo": {"name": "ci", "version": "1"}, "capabilities": {"experimentalApi": True}})
send({"method": "initialized"})
tools = [{"type": "function", **TOOL}]
thread = ask("thread/start", {"model": model, "ephemeral": True, "environments": [], "dynamicTools": tools})["thread"]["id"]
ask("turn/start", {"threadId": thread, "input": [{"type": "text", "text": words}]})
while heard().get("method") != "turn/completed":
    pass
server.stdin.close()
sys.exit(server.wait())
