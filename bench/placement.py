#!/usr/bin/env python3
"""How long a placement takes to check, and how the decider does over mock nodes with faults.

usage: bench/placement.py [--program target/release/cortex-placement] [--nodes 100,1000] [--seeds 20] [--json FILE]

Needs a release build: `cargo build --release -p cortex-nickel`. `--nodes 100,1000,10000` takes some seven minutes. Each check runs
five times; the best time and the largest memory of them count, the child that evaluates included.
"""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def fleet(models, hosts):
    """A third of the models always held, each on either of two hosts with four GPUs."""
    gpu = '{ name = "H100", vram_mb = 81559, compute_capability = "9.0" }'
    lines = ["{", "  hosts = {"]
    for host in range(hosts):
        lines.append(f'    host-{host:02} = {{ endpoint = "http://host-{host:02}:13131", gpus = [{", ".join([gpu] * 4)}] }},')
    lines += ["  },", "  models = {"]
    for model in range(models):
        residency = "'resident" if model % 3 == 0 else "'on_demand"
        first, second = f"host-{model % hosts:02}", f"host-{(model + 1) % hosts:02}"
        lines.append(
            f'    "model-{model:04}" = {{ vram_mb = {4000 + model * 7919 % 30000}, context = 8192, residency = {residency}, '
            f'aliases = ["alias-{model}"], placement = {{ {first} = {{}}, {second}.mode = \'auto }} }},'
        )
    return "\n".join([*lines, "  },", "}", ""])


def check(program, models, hosts):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "models.ncl"
        file.write_text(fleet(models, hosts))
        runs = []
        for _ in range(5):
            started = time.monotonic()
            child = subprocess.Popen([program, "check", file], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                sys.exit(f"{models} models on {hosts} hosts: exit status {child.returncode}")
            runs.append((time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss))
    times = [run[0] for run in runs]
    row = {
        "models": models,
        "hosts": hosts,
        "s": [round(one, 3) for one in times],
        "processor_s": [round(run[1], 3) for run in runs],
        "memory_mib": max(run[2] for run in runs) // 1024,
    }
    print(f"check     {models:>5} models on {hosts:>2} hosts: {min(times):.2f} s, of a processor {min(row['processor_s']):.2f} s, {row['memory_mib']} MiB")
    return row


def simulate(program, nodes, seeds):
    runs = json.loads(subprocess.check_output([program, "simulate", "--nodes", str(nodes), "--seeds", str(seeds), "--faults", "--json"]))
    middle = lambda clock: sorted(run[f"{clock}_middle_us"] for run in runs)[len(runs) // 2]
    longest = lambda clock: max(run[f"{clock}_max_us"] for run in runs)
    rests = [run["rest_steps"] for run in runs]
    print(
        f"simulate  {nodes:>5} nodes, seeds 0 to {seeds - 1}: at rest after {min(rests)} to {max(rests)} steps; "
        f"a plan step {middle('decision')} us in the middle, {longest('decision')} us at most, "
        f"of a processor {middle('processor')} and {longest('processor')} us"
    )
    return {"nodes": nodes, "runs": runs}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/cortex-placement")
    args.add_argument("--nodes", default="100,1000")
    args.add_argument("--seeds", type=int, default=20)
    args.add_argument("--json", type=pathlib.Path)
    args = args.parse_args()
    result = {
        "bench": "placement",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_before": os.getloadavg()[0],
        "checks": [check(args.program, 12, 5), check(args.program, 1000, 50)],
        "simulations": [simulate(args.program, int(nodes), args.seeds) for nodes in args.nodes.split(",")],
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
