#!/usr/bin/env python3
"""What the demo model sees and says, through the public API: 300 questions about 60 pictures, as trained and with each switch on, and
25 conversations as trained.

usage: bench/eyes.py [--cortex target/release/cortex] [--tests FOLDER] [--json FILE]

Starts `cortex up` on free ports once per row, asks every question as a client would (a data URL, temperature 0), and prints how many
answers are right and how many equal the reference's (Hugging Face transformers). A conversation counts if each of its answers has the
reference's thought, text and tool calls. FOLDER defaults to DEMO_TESTS_DIR, else the set in the tree.
"""
import argparse
import base64
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
OWN = ROOT / "crates/neuron-engine/testdata/demo"
# The switch, and what the fixtures call the mistake that it brings back.
ROWS = [
    ("as trained", {}, None),
    ("NEURON_VISION_LEGACY_POS=1", {"NEURON_VISION_LEGACY_POS": "1"}, "sequential_positions"),
    ("NEURON_VISION_LEGACY_ROPE=1", {"NEURON_VISION_LEGACY_ROPE": "1"}, "no_vision_rotary"),
    ("NEURON_MROPE=0", {"NEURON_MROPE": "0"}, "text_positions_1d"),
]


class Server:
    """A `cortex up` of its own."""

    def __init__(self, cortex, env):
        ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--neuron-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([cortex, "up", *ports], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
        self.url = re.search(r"gateway (http://\S+)", self.process.stdout.readline()).group(1)
        for line in self.process.stdout:
            if line.startswith("serving"):
                return
        raise SystemExit("cortex up ended before it served")

    def chat(self, messages, **more):
        body = {"model": "cortex-demo", "temperature": 0, "max_tokens": 150, "messages": messages, **more}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]["message"]

    def ask(self, picture, question):
        return self.chat([{"role": "user", "content": [shown(picture), {"type": "text", "text": question}]}])["content"]

    def talks(self, folder, dialog):
        """Whether every answer is the reference's; the conversation goes on with the model's own."""
        messages = [{"role": "system", "content": dialog["system"]}] if dialog["system"] else []
        more = {"tools": dialog["tools"]} if dialog["tools"] else {}
        if dialog["enable_thinking"]:
            more["chat_template_kwargs"] = {"enable_thinking": True}
        for turn in dialog["turns"]:
            messages += [with_picture(message, folder, dialog["image"]) for message in turn["send"]]
            said = self.chat(messages, **more)
            if not is_reference(said, turn):
                return False
            messages.append({name: said[name] for name in ("role", "content", "tool_calls") if name in said})
        return True

    def stop(self):
        self.process.terminate()
        self.process.wait()


def shown(picture):
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()}}


def with_picture(message, folder, picture):
    """The fixtures' messages say where the picture stands, not its bytes."""
    if not isinstance(message["content"], list):
        return message
    parts = [shown(folder / picture) if part["type"] in ("image", "image_url") else part for part in message["content"]]
    return {**message, "content": parts}


def is_reference(said, turn):
    """The reference is the model's own text: `[thought</think>]text`, or calls between tags, which `tool_calls` lists."""
    thought, _, text = turn["answer"].rpartition("</think>")
    calls = [{"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])} for call in said.get("tool_calls", [])]
    found = (said.get("reasoning_content") or "", said["content"] or "", calls)
    return found == (thought.strip(), text.split("<tool_call>")[0].strip(), turn["tool_calls"])


def measure(cortex, env, folder, tests, dialogs):
    server = Server(cortex, env)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda test: server.ask(folder / test["image"], test["question"]), tests))
            return answers, list(pool.map(lambda dialog: server.talks(folder, dialog), dialogs))
    finally:
        server.stop()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cortex", default=ROOT / "target/release/cortex")
    args.add_argument("--tests", type=pathlib.Path, default=pathlib.Path(os.environ.get("DEMO_TESTS_DIR", OWN)))
    args.add_argument("--json", type=pathlib.Path)
    args = args.parse_args()
    tests = json.loads((args.tests / "tests.json").read_text())
    matrix = json.loads((args.tests / "bug_matrix.json").read_text())
    dialogs = json.loads((args.tests / "dialogs.json").read_text())
    rows = []
    print(f"{'':<30}{'right':>8}{'expected':>10}{'as reference':>14}   of {len(tests)}")
    for name, env, mistake in ROWS:
        # The switches change what is seen, not what is said: conversations are held once.
        answers, held = measure(args.cortex, env, args.tests, tests, dialogs if mistake is None else [])
        right = sum(answer == test["expected"] for answer, test in zip(answers, tests))
        same = sum(answer == test["reference"] for answer, test in zip(answers, tests))
        expected = matrix[mistake or "reference"]["all"][0]
        rows.append({"switch": name, "right": right, "expected": expected, "as_reference": same, "of": len(tests)})
        print(f"{name:<30}{right:>8}{expected:>10}{same:>14}", flush=True)
        if mistake is None:
            rows.append({"conversations": sum(held), "of": len(held)})
            print(f"{'conversations':<30}{sum(held):>8}{len(held):>10}", flush=True)
            for dialog in (dialog for dialog, well in zip(dialogs, held) if not well):
                print(f"  differs: {dialog['name']}")
    if args.json:
        args.json.write_text(json.dumps({"bench": "eyes", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
