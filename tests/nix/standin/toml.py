"""Writes the JSON of a file as TOML: tables, arrays and the scalars that both have."""

import json
import sys


def value(v):
    if isinstance(v, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {value(x)}" for k, x in v.items()) + " }"
    if isinstance(v, list):
        return "[" + ", ".join(value(x) for x in v) + "]"
    return json.dumps(v, ensure_ascii=False)


with open(sys.argv[1], encoding="utf-8") as file:
    table = json.load(file)
# Scalars first: after a [table] header they would belong to the table.
for key, v in sorted(table.items(), key=lambda item: isinstance(item[1], dict)):
    if isinstance(v, dict):
        print(f"\n[{json.dumps(key)}]")
        for inner, x in v.items():
            print(f"{json.dumps(inner)} = {value(x)}")
    else:
        print(f"{json.dumps(key)} = {value(v)}")
