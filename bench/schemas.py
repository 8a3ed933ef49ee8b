#!/usr/bin/env python3
"""JSON that must fit a schema, through the public API: many samples at temperature 1 over the 20 schemas of the engine's tests.

usage: bench/schemas.py [--cortex target/release/cortex] [--samples 1000] [--json FILE]        (needs `jsonschema` from PyPI)

Starts `cortex up` on free ports, asks the demo model for JSON with `response_format`, and validates every answer with another
implementation of JSON Schema. A sample that does not validate, or that is not finished, is printed.
"""
import argparse
import collections
import concurrent.futures
import json
import pathlib

import jsonschema
from eyes import ROOT, Server

SCHEMAS = json.loads((ROOT / "crates/neuron-engine/testdata/schemas.json").read_text())
QUESTIONS = ["Hello!", "Describe yourself in JSON.", "What is 17 + 25?", "Tell me a story."]


def sample(server, place):
    name = list(SCHEMAS)[place % len(SCHEMAS)]
    schema = SCHEMAS[name]
    said = server.chat(
        [{"role": "user", "content": QUESTIONS[place % len(QUESTIONS)]}],
        temperature=1,
        seed=place,
        max_tokens=300,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}},
    )["content"]
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(said))
        return name, said, None
    except (ValueError, jsonschema.ValidationError) as error:
        return name, said, str(error).splitlines()[0]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cortex", default=ROOT / "target/release/cortex")
    args.add_argument("--samples", type=int, default=1000)
    args.add_argument("--json", type=pathlib.Path)
    args = args.parse_args()
    server = Server(args.cortex, {})
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            samples = list(pool.map(lambda place: sample(server, place), range(args.samples)))
    finally:
        server.stop()
    rows = []
    for name in SCHEMAS:
        of_schema = [(said, error) for found, said, error in samples if found == name]
        valid = sum(error is None for _, error in of_schema)
        distinct = len(collections.Counter(said for said, _ in of_schema))
        rows.append({"schema": name, "valid": valid, "of": len(of_schema), "distinct": distinct})
        print(f"{name:<22}{valid:>5} of {len(of_schema)} valid, {distinct} distinct")
        for said, error in of_schema:
            if error:
                print(f"  {error}: {said!r}")
    print(f"{'all':<22}{sum(row['valid'] for row in rows):>5} of {len(samples)} valid")
    if args.json:
        args.json.write_text(json.dumps({"bench": "schemas", "temperature": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
