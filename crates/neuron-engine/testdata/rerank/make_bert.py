"""Writes bert.json: what a BERT cross-encoder says of pairs of texts.

The encoder is ../parity/checkpoints/bert; the head is given by a formula, which tests/it/rerank.rs repeats. usage: python3 make_bert.py
"""

import json
import math
import pathlib
import re

from encoder import encode, read, relevance, single

HERE = pathlib.Path(__file__).parent
BERT = HERE.parent / "parity" / "checkpoints" / "bert"
QUERY = "what is the weather in paris?"
DOCUMENTS = ["the weather in paris is tall", "a tool", "he said it and she does not", "?", "paris, paris! 42 and 10 are wide"]


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


def main():
    config = json.loads((BERT / "config.json").read_text())
    vocab = json.loads((BERT / "tokenizer.json").read_text())["model"]["vocab"]
    found = read(BERT / "model.safetensors")
    scores, tokens = [], 0
    for document in DOCUMENTS:
        first = [vocab["[CLS]"], *words(QUERY, vocab), vocab["[SEP]"]]
        second = [*words(document, vocab), vocab["[SEP]"]]
        tokens += len(first) + len(second)
        rows = encode(first + second, [0] * len(first) + [1] * len(second), 0, config, found)
        scores.append(round(relevance(rows[0], *head(config["hidden_size"])), 9))
    reference = {"query": QUERY, "documents": DOCUMENTS, "tokens": tokens, "scores": scores}
    (HERE / "bert.json").write_text(json.dumps(reference, indent=1) + "\n")


main()
