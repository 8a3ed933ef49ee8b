"""What a client printed, line by line JSON, must be a turn that ended well. usage: turn.py CLIENT FILE"""

import json
import sys

client, file = sys.argv[1:]
text = open(file).read()
if client == "continue":
    assert text.strip() and '"status":"error"' not in text, text
    print(f"  says: {text.strip()}")
    sys.exit()
lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
last = lines[-1]
if client in ("claude", "claude_agent"):
    calls = [block["name"] for line in lines if line["type"] == "assistant" for block in line["message"]["content"] if block["type"] == "tool_use"]
    assert (last["type"], last["subtype"], last["is_error"]) == ("result", "success", False), last
    said, tokens = last["result"], last["usage"]["input_tokens"] + last["usage"]["cache_read_input_tokens"]
elif client == "codex_app":
    told = {line["method"]: line["params"] for line in lines if "method" in line}
    items = [line["params"]["item"] for line in lines if line.get("method") == "item/completed"]
    calls = [item["tool"] for item in items if item["type"] == "dynamicToolCall" and item["success"]]
    assert told["turn/completed"]["turn"]["status"] == "completed" and "error" not in told, text
    said = [item["text"] for item in items if item["type"] == "agentMessage"][-1]
    tokens = told["thread/tokenUsage/updated"]["tokenUsage"]["total"]["inputTokens"]
else:
    items = [line["item"] for line in lines if line["type"] == "item.completed"]
    calls = [item["type"] for item in items if item["type"] in ("command_execution", "mcp_tool_call")]
    assert last["type"] == "turn.completed" and not [line for line in lines if line["type"] in ("error", "turn.failed")], text
    said, tokens = [item["text"] for item in items if item["type"] == "agent_message"][-1], last["usage"]["input_tokens"]
assert said.strip(), text
print(f"  prompts of {tokens} tokens together, calls: {calls}, says: {said}")
