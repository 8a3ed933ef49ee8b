"""Open WebUI's server on a free port, and what its page in a browser asks of it.

usage: page.py GATEWAY MODEL PICTURE        (in an empty folder, which becomes its data)
"""

import asyncio
import base64
import json
import os
import socket
import sys
import threading
import uuid

GATEWAY, MODEL, PICTURE = sys.argv[1:]
# The server logs to what is standard output when it is loaded.
OURS, sys.stdout = sys.stdout, sys.stderr
KEYS = {"OPENAI_API_BASE_URL": GATEWAY + "/v1", "OPENAI_API_KEY": "none", "WEBUI_AUTH": "False", "ENABLE_OLLAMA_API": "False"}
# Nothing is embedded or heard here, and nothing is fetched for it.
QUIET = {"RAG_EMBEDDING_ENGINE": "openai", "AUDIO_STT_ENGINE": "openai", "OFFLINE_MODE": "True", "ANONYMIZED_TELEMETRY": "False"}
os.environ |= {**KEYS, **QUIET, "DATA_DIR": os.getcwd(), "WEBUI_SECRET_KEY": str(uuid.uuid4()), "FROM_INIT_PY": "true"}

import aiohttp  # noqa: E402
import socketio  # noqa: E402
import uvicorn  # noqa: E402
from open_webui.main import app  # noqa: E402

WEATHER = '''"""
title: weather
"""
import json


class Tools:
    def get_weather(self, city: str) -> str:
        """Get the weather in a city"""
        return json.dumps({"temperature": 21, "condition": "sunny"})
'''


def served():
    """The server's URL; it runs until this process ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def tell(*words):
    print(" ", *words, file=OURS, flush=True)


class Page:
    """A page that is open: its requests, and the events that come over its socket."""

    async def open(self, url):
        self.http = aiohttp.ClientSession(url)
        token = (await self.post("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
        self.http.headers["authorization"] = "Bearer " + token
        self.socket = socketio.AsyncClient()
        self.events = asyncio.Queue()
        self.socket.on("events", self.events.put)
        await self.socket.connect(url, socketio_path="/ws/socket.io", transports=["websocket"], auth={"token": token})

    async def post(self, path, body):
        async with self.http.post(path, json=body) as answer:
            assert answer.status == 200, (path, await answer.text())
            return await answer.json()

    async def get(self, path):
        async with self.http.get(path) as answer:
            assert answer.status == 200, (path, await answer.text())
            return await answer.json()

    async def says(self, content, **more):
        """The message that a new chat has in the end, after its question."""
        asked, answer = ({"id": str(uuid.uuid4()), "role": role, "content": text, "timestamp": 1} for role, text in (("user", content), ("assistant", "")))
        asked |= {"parentId": None, "childrenIds": [answer["id"]], "models": [MODEL]}
        answer |= {"parentId": asked["id"], "childrenIds": [], "model": MODEL}
        history = {"messages": {message["id"]: message for message in (asked, answer)}, "currentId": answer["id"]}
        chat = (await self.post("/api/v1/chats/new", {"chat": {"title": "New", "models": [MODEL], "history": history}}))["id"]
        place = {"session_id": self.socket.sid, "chat_id": chat, "id": answer["id"]}
        messages = [{"role": "user", "content": content}]
        await self.post("/api/chat/completions", {"model": MODEL, "stream": True, "messages": messages, "background_tasks": {}, **place, **more})
        while True:
            event = await asyncio.wait_for(self.events.get(), 60)
            if event["chat_id"] == chat and event["data"]["type"] == "chat:active" and not event["data"]["data"]["active"]:
                return (await self.get(f"/api/v1/chats/{chat}"))["chat"]["history"]["messages"][answer["id"]]


async def main():
    page = Page()
    await page.open(served())
    tell("models:", *[model["id"] for model in (await page.get("/api/models"))["data"]])
    # The tools that Open WebUI brings are 9,000 of the demo model's tokens.
    meta = {"capabilities": {"builtin_tools": False}}
    await page.post("/api/v1/models/create", {"id": MODEL, "name": MODEL, "params": {"function_calling": "native"}, "meta": meta})
    await page.get("/api/models?refresh=true")

    said = await page.says("What is 17 + 25?")
    assert said["content"] == "17 + 25 = 42.", said
    tell("says:", said["content"])

    with open(PICTURE, "rb") as file:
        url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
    said = await page.says([{"type": "text", "text": "Describe the picture."}, {"type": "image_url", "image_url": {"url": url}}])
    assert said["content"] == "A row of 3 shapes from left to right: yellow star, pink star, blue star.", said
    tell("says:", said["content"])

    said = await page.says("river " * 6000)
    assert "context is 4096 tokens" in said["error"]["content"], said
    tell("says:", said["error"]["content"])

    await page.post("/api/v1/tools/create", {"id": "weather", "name": "weather", "content": WEATHER, "meta": {"description": ""}})
    said = await page.says("What is the weather in Paris?", tool_ids=["weather"])
    call, result, _ = said["output"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"}) and "sunny" in json.dumps(result), said
    assert said["content"] == "It is sunny in Paris with 21 degrees.", said
    tell("says:", said["content"])
    await page.http.close()


asyncio.run(main())
os._exit(0)  # The server's threads would go on.
