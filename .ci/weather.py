"""A tool server (MCP over standard input and output) with one tool."""

import json
import sys

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "Get the weather in a city", "inputSchema": SCHEMA}
WEATHER = json.dumps({"temperature": 21, "condition": "sunny"})


def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "weather", "version": "1"}}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": WEATHER}]}
    return {}


def main():
    for line in sys.stdin:
        call = json.loads(line)
        if "id" in call:
            print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": answer(call["method"], call.get("params", {}))}), flush=True)


if __name__ == "__main__":
    main()
