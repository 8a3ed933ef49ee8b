"""Writes reference.json: what a BERT cross-encoder says of pairs of texts, computed plainly in 64 bits, without any library.

The encoder is ../parity/checkpoints/bert; the head is given by a formula, which tests/it/rerank.rs repeats. usage: python3 make.py
"""

import json
import math
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).parent
BERT = HERE.parent / "parity" / "checkpoints" / "bert"
QUERY = "what is the weather in paris?"
DOCUMENTS = ["the weather in paris is tall", "a tool", "he said it and she does not", "?", "paris, paris! 42 and 10 are wide"]


def tensors():
    data = (BERT / "model.safetensors").read_bytes()
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
    return struct.unpack("<f", struct.pack("<f", x))[0]


def head(hidden):
    dense = [[single(0.3 * math.sin(0.37 * (i * hidden + j) + 0.1)) for j in range(hidden)] for i in range(hidden)]
    bias = [single(0.05 * math.cos(i)) for i in range(hidden)]
    return dense, bias, [[single(0.5 * math.cos(0.7 * j)) for j in range(hidden)]], [single(0.1)]


def words(text, vocab):
    """Greedy word pieces."""
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        at, pieces = 0, []
        while at < len(word):
            end = next((end for end in range(len(word), at, -1) if ("##" if at else "") + word[at:end] in vocab), None)
            if end is None:
                pieces = ["[UNK]"]
                break
            pieces.append(("##" if at else "") + word[at:end])
            at = end
        yield from (vocab[piece] for piece in pieces)


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


def score(ids, types, config, found):
    eps = config["layer_norm_eps"]
    get = lambda name: (found[name + ".weight"], found[name + ".bias"])
    word, place, kind = (found[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = [[a + b + c for a, b, c in zip(word[i], place[p], kind[t])] for p, (i, t) in enumerate(zip(ids, types))]
    x = norm(x, *get("embeddings.LayerNorm"), eps)
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{n}."
        q, k, v = (linear(x, *get(f"{layer}attention.self.{name}")) for name in ("query", "key", "value"))
        mixed = linear(attend(q, k, v, config["num_attention_heads"]), *get(layer + "attention.output.dense"))
        x = norm(add(mixed, x), *get(layer + "attention.output.LayerNorm"), eps)
        inner = gelu(linear(x, *get(layer + "intermediate.dense")))
        x = norm(add(linear(inner, *get(layer + "output.dense")), x), *get(layer + "output.LayerNorm"), eps)
    dense, bias, last, last_bias = head(config["hidden_size"])
    pooled = [[math.tanh(value) for value in linear(x[:1], dense, bias)[0]]]
    return 1 / (1 + math.exp(-linear(pooled, last, last_bias)[0][0]))


def main():
    config = json.loads((BERT / "config.json").read_text())
    vocab = json.loads((BERT / "tokenizer.json").read_text())["model"]["vocab"]
    found = tensors()
    scores, tokens = [], 0
    for document in DOCUMENTS:
        first = [vocab["[CLS]"], *words(QUERY, vocab), vocab["[SEP]"]]
        second = [*words(document, vocab), vocab["[SEP]"]]
        tokens += len(first) + len(second)
        scores.append(round(score(first + second, [0] * len(first) + [1] * len(second), config, found), 9))
    reference = {"query": QUERY, "documents": DOCUMENTS, "tokens": tokens, "scores": scores}
    (HERE / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")


main()
