#!/usr/bin/env python3
"""How long a client waits for the first token, over HTTP: one request at a time, 128 tokens in and one out, from the first byte sent to the
first event received. (What a made-up model says has mostly no text, and a token without text waits for the next one.)

usage: bench/ttft.py [--neuron target/release/neuron] [--cortex target/release/cortex] [--shape qwen3-8b] [--requests 40] [--json FILE]

Writes made-up weights of a shape that `neuron bench` knows to a folder of its own, serves them with a node on a free port, and asks for
prompts that nobody has asked before. With --cortex the same is measured through a gateway in front of that node.
"""
import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time

PROMPT_TOKENS = 128  # made-up models have one token per byte
STARTING_S_MAX = 300


def started(command, log):
    """The program and the address that it says it listens on."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "NO_COLOR": "1"})
    until = time.monotonic() + STARTING_S_MAX
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"listening.*?addr=\"?(\d+\.\d+\.\d+\.\d+:\d+)|gateway http://(\S+:\d+)", open(log, encoding="utf-8", errors="replace").read())
        if found:
            return process, found.group(1) or found.group(2)
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"{command[0]} did not start:\n{open(log, encoding='utf-8', errors='replace').read()}")


def first_token_ms(address, model, text):
    body = json.dumps({"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "stream": True})
    connection = http.client.HTTPConnection(address, timeout=STARTING_S_MAX)
    connection.connect()
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status == 503:
        return None
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.read().decode()}")
    for line in answer:
        if line.startswith(b"data: {"):
            waited = time.perf_counter() - start
            answer.read()
            connection.close()
            return waited * 1e3
    raise SystemExit("the answer had no event")


def measure(address, model, requests):
    letters = random.Random(1)
    prompt = lambda: "".join(letters.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(PROMPT_TOKENS))
    # A node listens before its models are loaded.
    until = time.monotonic() + STARTING_S_MAX
    while first_token_ms(address, model, prompt()) is None:
        if time.monotonic() > until:
            raise SystemExit(f"{model} was not loaded within {STARTING_S_MAX} s")
        time.sleep(0.1)
    for _ in range(5):
        first_token_ms(address, model, prompt())
    times = sorted(first_token_ms(address, model, prompt()) for _ in range(requests))
    return {"median_ms": statistics.median(times), "p95_ms": times[int(0.95 * (len(times) - 1))], "min_ms": times[0]}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--neuron", default="target/release/neuron")
    options.add_argument("--cortex")
    options.add_argument("--shape", default="qwen3-8b")
    options.add_argument("--requests", type=int, default=40)
    options.add_argument("--json")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/{options.shape}"
        subprocess.run([options.neuron, "bench", "--random", options.shape, "--keep", folder, "--only", "load", "--rounds", "1"], check=True)
        node, address = started([options.neuron, "--listen", "127.0.0.1:0", "--model", folder], f"{scratch}/neuron.log")
        rows, gateway = {}, None
        try:
            rows["node"] = measure(address, options.shape, options.requests)
            if options.cortex:
                config = f"{scratch}/cortex.toml"
                with open(config, "w", encoding="utf-8") as file:
                    file.write(f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n[[neurons]]\nname = "node"\nendpoint = "http://{address}"\n')
                gateway, address = started([options.cortex, "serve", "--config", config], f"{scratch}/cortex.log")
                rows["gateway"] = measure(address, options.shape, options.requests)
        finally:
            for process in filter(None, [gateway, node]):
                process.terminate()
                process.wait()
    for name, row in rows.items():
        print(f"{options.shape}, {PROMPT_TOKENS} tokens in, {name}: first token after {row['median_ms']:.2f} ms (95 %: {row['p95_ms']:.2f}, least {row['min_ms']:.2f})")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"bench": "ttft", "shape": options.shape, "prompt_tokens": PROMPT_TOKENS, "requests": options.requests, **rows}, file, indent=2)


main()
