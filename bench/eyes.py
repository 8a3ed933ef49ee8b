#!/usr/bin/env python3
"""What the demo model sees, through the public API: 300 questions about 60 pictures, as trained and with each switch on.

usage: bench/eyes.py [--cortex target/release/cortex] [--tests FOLDER] [--json FILE]

Starts `cortex up` on free ports once per row, asks every question as a client would (a data URL, temperature 0), and prints how many
answers are right and how many equal the reference's (Hugging Face transformers). FOLDER defaults to DEMO_TESTS_DIR, else the set in the tree.
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

    def ask(self, picture, question):
        url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"model": "cortex-demo", "temperature": 0, "max_tokens": 150, "messages": [{"role": "user", "content": content}]}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def measure(cortex, env, folder, tests):
    server = Server(cortex, env)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return list(pool.map(lambda test: server.ask(folder / test["image"], test["question"]), tests))
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
    rows = []
    print(f"{'':<30}{'right':>8}{'expected':>10}{'as reference':>14}   of {len(tests)}")
    for name, env, mistake in ROWS:
        answers = measure(args.cortex, env, args.tests, tests)
        right = sum(answer == test["expected"] for answer, test in zip(answers, tests))
        same = sum(answer == test["reference"] for answer, test in zip(answers, tests))
        expected = matrix[mistake or "reference"]["all"][0]
        rows.append({"switch": name, "right": right, "expected": expected, "as_reference": same, "of": len(tests)})
        print(f"{name:<30}{right:>8}{expected:>10}{same:>14}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"bench": "eyes", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
