"""BERT and its relatives, computed plainly in 64 bits, without any library. What is read and given are lists of rows."""

import json
import math
import pathlib
import struct


def read(file):
    """Name to matrix or vector, out of a safetensors file of F32."""
    data = pathlib.Path(file).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            begin, end = entry["data_offsets"]
            flat = struct.unpack(f"<{(end - begin) // 4}f", data[8 + size + begin : 8 + size + end])
            *_, width = entry["shape"]
            found[name] = flat if len(entry["shape"]) == 1 else [flat[i : i + width] for i in range(0, len(flat), width)]
    return found


def single(x):
    """The nearest 32-bit number."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def linear(rows, weight, bias):
    return [[sum(w * x for w, x in zip(line, row)) + b for line, b in zip(weight, bias)] for row in rows]


def add(a, b):
    return [[x + y for x, y in zip(left, right)] for left, right in zip(a, b)]


def norm(rows, weight, bias, eps):
    out = []
    for row in rows:
        mean = sum(row) / len(row)
        scale = 1 / math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + eps)
        out.append([(x - mean) * scale * w + b for x, w, b in zip(row, weight, bias)])
    return out


def attend(q, k, v, heads):
    dim = len(q[0]) // heads
    out = [[] for _ in q]
    for h in range(heads):
        part = slice(h * dim, (h + 1) * dim)
        for place, row in enumerate(q):
            scores = [sum(a * b for a, b in zip(row[part], key[part])) / math.sqrt(dim) for key in k]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            out[place] += [sum(w * value[part][i] for w, value in zip(weights, v)) / sum(weights) for i in range(dim)]
    return out


def gelu(rows):
    return [[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in rows]


def encode(ids, types, first_position, config, found):
    """The last layer's rows. The names in `found` begin at `embeddings` and `encoder`."""
    eps = config["layer_norm_eps"]
    get = lambda name: (found[name + ".weight"], found[name + ".bias"])
    word, place, kind = (found[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = [[a + b + c for a, b, c in zip(word[i], place[p], kind[t])] for p, (i, t) in enumerate(zip(ids, types), first_position)]
    x = norm(x, *get("embeddings.LayerNorm"), eps)
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{n}."
        q, k, v = (linear(x, *get(f"{layer}attention.self.{name}")) for name in ("query", "key", "value"))
        mixed = linear(attend(q, k, v, config["num_attention_heads"]), *get(layer + "attention.output.dense"))
        x = norm(add(mixed, x), *get(layer + "attention.output.LayerNorm"), eps)
        inner = gelu(linear(x, *get(layer + "intermediate.dense")))
        x = norm(add(linear(inner, *get(layer + "output.dense")), x), *get(layer + "output.LayerNorm"), eps)
    return x


def relevance(row, dense, dense_bias, output, output_bias):
    """What a ranking head says of the first row, between 0 and 1."""
    pooled = [[math.tanh(value) for value in linear([row], dense, dense_bias)[0]]]
    return 1 / (1 + math.exp(-linear(pooled, output, output_bias)[0][0]))
