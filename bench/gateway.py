#!/usr/bin/env python3
"""What a request costs on its way through cortex and through its peers, measured side by side.

One mock node (`mock-neuron`, no engine) answers everybody. Each proxy forwards chat requests to it; the figures are the processor time that the
proxy itself used (user and system, all its threads and children, from /proc), so that the load generator and the node do not count, and its memory
(Pss: pages that processes share count once).

    us_per_request   whole chats over 32 connections, one after the other on each
    us_per_event     what one more event of a stream costs: processor time while 200 streams are open, each with an event every 20 ms as a model
                     makes them, divided by the events that arrived in that time; no stream begins or ends meanwhile
    reads_per_event  how many reads brought those events to the client; 1 means that each went through on its own
    idle_mb          after start
    kb_per_stream    by how much memory grows with each open stream: the slope of a line through 200, 650, .. 2,000 of them

The proxies take turns in every round, so that a busy minute of the machine meets them all; each figure is the median of the rounds.
cortex runs with an API key, metrics and its access log, as in production; nginx with its access log; the routers with their defaults.
nginx and wrk come from the distribution's packages, the routers from PyPI into a virtual environment.

usage: bench/gateway.py --bin target/release [--seconds 10] [--rounds 3] [--out bench/results/gateway.json] [--peers nginx,vllm-router,sglang-router]
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

CONNECTIONS = 32
STREAMS = 200
EVENT_MS = 20
OPEN_STREAMS = range(200, 2001, 450)
OPEN_EVENT_MS = 500
ANSWER_WORDS = {"whole": 100, "streamed": 2_000, "open": 200}
KEY = "bench-key"
TICK = os.sysconf("SC_CLK_TCK")
ROUTERS = {"vllm-router": "vllm-router==0.1.17", "sglang-router": "sglang-router==0.3.2"}
MESSAGE = "Tell me, in one short paragraph, what a reverse proxy does. " * 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode} before it served; see its log")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} does not answer within {seconds} s")


def family(pid):
    """The process and its descendants."""
    found = [pid]
    for at in found:
        for task in Path(f"/proc/{at}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_s(pid):
    total = 0
    for member in family(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory(pid):
    lines = [Path(f"/proc/{member}/smaps_rollup").read_text().splitlines() for member in family(pid)]
    return sum(int(line.split()[1]) * 1024 for lines in lines for line in lines if line.startswith("Pss:"))


class Server:
    def __init__(self, name, command, log, health, env=None):
        self.name = name
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        wait_for(health, self.process)

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        os.killpg(self.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


def body(stream):
    return json.dumps({"model": "chat", "stream": stream, "messages": [{"role": "user", "content": MESSAGE}]})


def wrk(work, port, seconds):
    """Requests that were answered 200, over `seconds`."""
    script = work / "chat.lua"
    script.write_text(
        f"""wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = {json.dumps(body(False))}
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {KEY}"
function done(summary)
    io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.errors.status,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""
    )
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), f"http://127.0.0.1:{port}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    requests, refused, broken = map(int, next(line for line in told.splitlines() if line.startswith("RESULT")).split()[1:])
    if refused or broken:
        sys.exit(f"port {port}: {refused} of {requests} requests were refused and {broken} broke:\n{told}")
    return requests


class Stream(asyncio.Protocol):
    """One open stream; counts what arrives."""

    reads = 0
    events = 0

    def __init__(self):
        self.begun = asyncio.get_running_loop().create_future()
        self.ended = False

    def connection_made(self, transport):
        self.transport = transport
        payload = body(True)
        transport.write((f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
                         f"content-length: {len(payload)}\r\n\r\n{payload}").encode())

    def data_received(self, data):
        if not self.begun.done():
            self.begun.set_result(data.startswith(b"HTTP/1.1 200 "))
        Stream.reads += 1
        Stream.events += data.count(b"data: ")

    def connection_lost(self, _error):
        self.ended = True


async def open_streams(port, count):
    loop = asyncio.get_running_loop()
    streams = [(await loop.create_connection(Stream, "127.0.0.1", port))[1] for _ in range(count)]
    if not all(await asyncio.wait_for(asyncio.gather(*(stream.begun for stream in streams)), 60)):
        sys.exit(f"port {port}: a stream was refused")
    return streams


def close_streams(streams):
    if any(stream.ended for stream in streams):
        sys.exit("a stream ended while it was measured")
    for stream in streams:
        stream.transport.abort()


def request_cost(server, port, work, seconds):
    """Processor time for each whole chat, and chats for each second."""
    before = cpu_s(server.pid)
    requests = wrk(work, port, seconds)
    return {"us_per_request": (cpu_s(server.pid) - before) / requests * 1e6, "requests_per_s": requests / seconds}


def event_cost(server, port, _work, seconds):
    """Processor time for each event, while streams are open and none begins or ends."""

    async def measure():
        streams = await open_streams(port, STREAMS)
        await asyncio.sleep(1)
        before, reads, events = cpu_s(server.pid), Stream.reads, Stream.events
        await asyncio.sleep(seconds)
        used, reads, events = cpu_s(server.pid) - before, Stream.reads - reads, Stream.events - events
        close_streams(streams)
        return {"us_per_event": used / events * 1e6, "reads_per_event": reads / events, "events_per_s": events / seconds}

    return asyncio.run(measure())


def stream_memory(server, port, _work, _seconds):
    """Memory for each open stream, while all of them are at work."""

    async def measure():
        streams, points = [], []
        for count in OPEN_STREAMS:
            streams += await open_streams(port, count - len(streams))
            await asyncio.sleep(3 * OPEN_EVENT_MS / 1000)
            points.append((count, memory(server.pid) / 1024))
        close_streams(streams)
        return {"kb_per_stream": statistics.linear_regression(*zip(*points)).slope, "kb_at_streams": points}

    return asyncio.run(measure())


def cortex(binaries, work, upstream, port):
    metrics = free_port()
    (work / "cortex.toml").write_text(
        f"""[gateway]
listen = "127.0.0.1:{port}"
metrics_listen = "127.0.0.1:{metrics}"
[[neurons]]
name = "mock"
endpoint = "http://127.0.0.1:{upstream}"
[[keys]]
name = "bench"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
"""
    )
    return [str(binaries / "cortex"), "serve", "--config", str(work / "cortex.toml")], f"http://127.0.0.1:{port}/health"


def nginx(_binaries, work, upstream, port):
    (work / "nginx.conf").write_text(
        f"""daemon off; worker_processes 2; pid {work}/nginx.pid; error_log {work}/nginx.err;
events {{ worker_connections 8192; }}
http {{
  access_log {work}/access.log;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  client_body_buffer_size 64k; keepalive_requests 1000000000;
  upstream node {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }}
  }}
}}
"""
    )
    return ["nginx", "-c", str(work / "nginx.conf"), "-p", str(work)], f"http://127.0.0.1:{port}/health"


def router(name):
    def command(_binaries, work, upstream, port):
        here = Path(tempfile.gettempdir()) / "cortex-bench-peers"
        if not (here / "bin" / name).exists():
            venv.create(here, with_pip=True)
            subprocess.run([here / "bin" / "pip", "install", "-q", *ROUTERS.values()], check=True)
        start = [str(here / "bin" / name)] + (["launch"] if name == "sglang-router" else [])
        flags = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin",
                 "--prometheus-port", str(free_port())]
        return start + flags, f"http://127.0.0.1:{port}/health"

    return command


def mock_node(binaries, port, pace, delay_ms, log):
    command = [str(binaries / "mock-neuron"), "--listen", f"127.0.0.1:{port}", "--models", "chat", "--answer", "word " * ANSWER_WORDS[pace],
               "--active-max", "5000", "--delay-ms", str(delay_ms)]
    return Server("mock", command, log, f"http://127.0.0.1:{port}/health")


@contextlib.contextmanager
def running(name, binaries, work, upstream):
    port = free_port()
    with open(work / f"{name}.log", "a") as log:
        command, health = PROXIES[name](binaries, work, upstream, port)
        proxy = Server(name, command, log, health)
        try:
            yield proxy, port
        finally:
            proxy.stop()


PROXIES = {"cortex": cortex, "nginx": nginx, "vllm-router": router("vllm-router"), "sglang-router": router("sglang-router")}
# What is measured, and how long the node takes for each event, in milliseconds.
MEASURES = {"whole": (request_cost, 0), "streamed": (event_cost, EVENT_MS), "open": (stream_memory, OPEN_EVENT_MS)}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--bin", type=Path, default=Path("target/release"), help="where cortex and mock-neuron are")
    args.add_argument("--seconds", type=int, default=10, help="of each run of the load")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--peers", default=",".join(name for name in PROXIES if name != "cortex"))
    args.add_argument("--only", default=",".join(MEASURES), help="of these parts")
    args.add_argument("--out", type=Path)
    args = args.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk nginx-light")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    names = ["cortex"] + [name for name in args.peers.split(",") if name]
    figures = {name: {} for name in names}
    rounds = []
    for part in args.only.split(","):
        measure, pace_ms = MEASURES[part]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            work, upstream = Path(folder), free_port()
            log = stack.enter_context(open(work / "mock.log", "w"))
            node = mock_node(args.bin, upstream, part, pace_ms, log)
            stack.callback(node.stop)
            proxies = {name: stack.enter_context(running(name, args.bin, work, upstream)) for name in names}
            for name, (proxy, _) in proxies.items():
                figures[name].setdefault("idle_mb", round(memory(proxy.pid) / 1e6, 1))
            if part == "whole":
                for _, port in proxies.values():
                    wrk(work, port, 2)
            for number in range(1 if part == "open" else args.rounds):
                for name, (proxy, port) in proxies.items():
                    seen = measure(proxy, port, work, args.seconds)
                    rounds.append({"part": part, "round": number, "proxy": name, "load_average": os.getloadavg()[0], **seen})
        for name in names:
            mine = [entry for entry in rounds if entry["part"] == part and entry["proxy"] == name]
            for figure in [key for key, value in mine[0].items() if isinstance(value, float) and key != "load_average"]:
                figures[name][figure] = round(statistics.median(entry[figure] for entry in mine), 2)
            print(f"{name:14}", figures[name], flush=True)
    if args.out:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}
        load = {"connections": CONNECTIONS, "streams": STREAMS, "event_ms": EVENT_MS, "open_streams": list(OPEN_STREAMS), "open_event_ms": OPEN_EVENT_MS,
                "seconds": args.seconds, "rounds": args.rounds}
        args.out.write_text(json.dumps({**machine, **load, "proxies": figures, "runs": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
