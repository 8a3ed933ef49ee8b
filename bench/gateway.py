#!/usr/bin/env python3
"""What a request costs on its way through cortex and through its peers, measured side by side.

One mock node (`mock-neuron`, no engine) answers everybody. Each proxy in turn forwards chat requests to it; the figures are the processor
time that the proxy itself used (user and system, all its threads and children, from /proc), so that the load generator and the node do not count,
and its resident memory.

    us_per_request   non-streamed chats over 32 connections
    us_per_event     of streamed chats over 200 connections, one event every 20 ms in each, as a model makes them: each event is a read and a
                     write of its own (one that came with others in one read would be cheaper)
    idle_mb          resident after start
    kb_per_stream    (resident with STREAMS open streams - resident before) / STREAMS

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
STREAMED_CONNECTIONS = 200
EVENTS = 100
EVENT_MS = 20
STREAMS = 1000
KEY = "bench-key"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
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


def resident(pid):
    return sum(int(Path(f"/proc/{member}/statm").read_text().split()[1]) * PAGE for member in family(pid))


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


def wrk(work, port, stream, seconds, connections=CONNECTIONS):
    """Requests that were answered 200, over `seconds`."""
    script = work / f"chat-{stream}.lua"
    script.write_text(
        f"""wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = {json.dumps(body(stream))}
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {KEY}"
function done(summary)
    io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.errors.status,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), f"http://127.0.0.1:{port}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    requests, refused, broken = map(int, next(line for line in told.splitlines() if line.startswith("RESULT")).split()[1:])
    if refused or broken:
        sys.exit(f"port {port}: {refused} of {requests} requests were refused and {broken} broke:\n{told}")
    return requests


async def open_streams(port, count):
    payload = body(True)
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(payload)}\r\n\r\n{payload}").encode()
    streams = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        streams.append((reader, writer))
    for reader, _ in streams:
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        if b" 200 " not in first.split(b"\r\n", 1)[0]:
            sys.exit(f"a stream was answered {first[:200]!r}")
        await asyncio.wait_for(reader.readuntil(b"data: "), 60)
    return streams


def kb_per_stream(server, port):
    async def measure():
        warm = await open_streams(port, 50)
        await asyncio.sleep(1)
        before = resident(server.pid)
        streams = await open_streams(port, STREAMS)
        await asyncio.sleep(2)
        after = resident(server.pid)
        for _, writer in warm + streams:
            writer.close()
        return (after - before) / STREAMS / 1024

    return asyncio.run(measure())


def cost_us(server, port, work, stream, seconds, connections):
    """Processor time for each request, and requests for each second."""
    before = cpu_s(server.pid)
    requests = wrk(work, port, stream, seconds, connections)
    return (cpu_s(server.pid) - before) / requests * 1e6, requests / seconds


def whole_answers(server, port, work, seconds, rounds):
    idle_mb = resident(server.pid) / 1e6
    wrk(work, port, False, 2)
    runs = [cost_us(server, port, work, False, seconds, CONNECTIONS) for _ in range(rounds)]
    costs = [cost for cost, _ in runs]
    return {"idle_mb": round(idle_mb, 1), "us_per_request": round(statistics.median(costs), 1),
            "requests_per_s": round(statistics.median(rate for _, rate in runs)), "raw_us_per_request": costs}


def streams(server, port, work, seconds, rounds):
    costs = [cost_us(server, port, work, True, seconds, STREAMED_CONNECTIONS)[0] / EVENTS for _ in range(rounds)]
    return {"us_per_event": round(statistics.median(costs), 2), "raw_us_per_event": costs}


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


def mock_node(binaries, port, delay_ms, log):
    words = " ".join(["word"] * EVENTS)
    command = [str(binaries / "mock-neuron"), "--listen", f"127.0.0.1:{port}", "--models", "chat", "--answer", words, "--active-max", "5000",
               "--delay-ms", str(delay_ms)]
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


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--bin", type=Path, default=Path("target/release"), help="where cortex and mock-neuron are")
    args.add_argument("--seconds", type=int, default=10, help="of each run of the load")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--peers", default=",".join(name for name in PROXIES if name != "cortex"))
    args.add_argument("--out", type=Path)
    args = args.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk nginx-light")
    names = ["cortex"] + [name for name in args.peers.split(",") if name]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with open(work / "mock.log", "w") as log:
            paces = {"whole": 0, "streamed": EVENT_MS, "open": 500}
            ports = {pace: free_port() for pace in paces}
            nodes = [mock_node(args.bin, ports[pace], delay_ms, log) for pace, delay_ms in paces.items()]
            try:
                for name in names:
                    with running(name, args.bin, work, ports["whole"]) as (proxy, port):
                        figures[name] = whole_answers(proxy, port, work, args.seconds, args.rounds)
                    with running(name, args.bin, work, ports["streamed"]) as (proxy, port):
                        figures[name] |= streams(proxy, port, work, args.seconds, args.rounds)
                    with running(name, args.bin, work, ports["open"]) as (proxy, port):
                        figures[name]["kb_per_stream"] = round(kb_per_stream(proxy, port), 1)
                    print(f"{name:14}", {key: value for key, value in figures[name].items() if not key.startswith("raw")}, flush=True)
            finally:
                for node in nodes:
                    node.stop()
    if args.out:
        args.out.write_text(json.dumps({"cores": os.cpu_count(), "machine": platform.machine(), "connections": CONNECTIONS, "streamed_connections": STREAMED_CONNECTIONS, "event_ms": EVENT_MS, "events": EVENTS,
                                        "streams": STREAMS, "seconds": args.seconds, "rounds": args.rounds, "proxies": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
