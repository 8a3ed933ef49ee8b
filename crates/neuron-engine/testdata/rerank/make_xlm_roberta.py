"""Writes xlm-roberta/, a random cross-encoder of bge-reranker-v2-m3's architecture, and xlm-roberta.json: what it says of pairs of texts, and
what its encoder makes of single ones. usage: python3 make_xlm_roberta.py
"""

import json
import math
import pathlib
import random
import struct

from encoder import encode, read, relevance, single

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "xlm-roberta"
QUERY = "wie ist das Wetter in Paris?"
DOCUMENTS = ["das Wetter in Paris ist gut", "le temps", "河 河 Zürich", "Qx", "Paris, Paris! 42 und 10 sind weit"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = ["▁das", "▁Wetter", "▁in", "▁Par", "is", "▁ist", "▁g", "ut", "▁le", "em", "ps", "▁Zür", "ich", "▁wie", "▁un", "ei", "▁s", "Wet", "ter", "ris"]
CONFIG = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "model_type": "xlm-roberta",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "position_embedding_type": "absolute",
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
}


def vocabulary(chance):
    letters = sorted({letter for text in [QUERY, *DOCUMENTS] for letter in text.replace(" ", "▁")} - set("Qx"))
    pieces = [[piece, round(-4 - 3 * chance.random(), 6)] for piece in PIECES]
    return [[name, 0.0] for name in SPECIAL] + pieces + [[letter, round(-9 - 2 * chance.random(), 6)] for letter in letters]


def tokenizer(vocab):
    special = lambda name: {"id": name, "ids": [SPECIAL.index(name)], "tokens": [name]}
    token = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(SPECIAL)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("<s>"), text("A"), token("</s>")],
            "pair": [token("<s>"), text("A"), token("</s>"), token("</s>"), text("B"), token("</s>")],
            "special_tokens": {name: special(name) for name in ("<s>", "</s>")},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def tensors(chance, vocab):
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {}
    linear = lambda name, rows, columns: shapes.update({name + ".weight": [rows, columns], name + ".bias": [rows]})
    norm = lambda name: shapes.update({name + ".weight": [hidden], name + ".bias": [hidden]})
    for name, rows in [("word", len(vocab)), ("position", CONFIG["max_position_embeddings"]), ("token_type", 1)]:
        shapes[f"roberta.embeddings.{name}_embeddings.weight"] = [rows, hidden]
    norm("roberta.embeddings.LayerNorm")
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"roberta.encoder.layer.{n}."
        for name in ("query", "key", "value"):
            linear(f"{layer}attention.self.{name}", hidden, hidden)
        linear(layer + "attention.output.dense", hidden, hidden)
        norm(layer + "attention.output.LayerNorm")
        linear(layer + "intermediate.dense", inner, hidden)
        linear(layer + "output.dense", hidden, inner)
        norm(layer + "output.LayerNorm")
    linear("classifier.dense", hidden, hidden)
    linear("classifier.out_proj", 1, hidden)
    middle = lambda name: 1.0 if name.endswith("LayerNorm.weight") else 0.0
    numbers = lambda name, shape: [single(middle(name) + 1.2 * (chance.random() - 0.5)) for _ in range(math.prod(shape))]
    return {name: (shape, numbers(name, shape)) for name, shape in shapes.items()}


def safetensors(tensors):
    head, data = {}, b""
    for name, (shape, numbers) in tensors.items():
        piece = struct.pack(f"<{len(numbers)}f", *numbers)
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tokens(text, vocab):
    """The most probable pieces of each word; what has none is one unknown token."""
    scores = dict(vocab[len(SPECIAL) :])
    ids = {name: i for i, (name, _) in enumerate(vocab)}
    unknown = min(scores.values()) - 10
    for word in text.split():
        word = "▁" + word
        best = [(0.0, [])]
        for end in range(1, len(word) + 1):
            ways = [(best[at][0] + scores[word[at:end]], best[at][1] + [word[at:end]]) for at in range(end) if word[at:end] in scores]
            best.append(max(ways or [(best[end - 1][0] + unknown, best[end - 1][1] + ["<unk>"])]))
        pieces = best[-1][1]
        yield from (ids[piece] for at, piece in enumerate(pieces) if piece != "<unk>" or at == 0 or pieces[at - 1] != "<unk>")


def main():
    chance = random.Random(7)
    vocab = vocabulary(chance)
    config = {**CONFIG, "vocab_size": len(vocab)}
    FOLDER.mkdir(exist_ok=True)
    write = lambda file, value: (FOLDER / file).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    write("config.json", config)
    write("tokenizer.json", tokenizer(vocab))
    write("tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    (FOLDER / "model.safetensors").write_bytes(safetensors(tensors(chance, vocab)))

    found = {name.removeprefix("roberta."): tensor for name, tensor in read(FOLDER / "model.safetensors").items()}
    get = lambda name: (found[f"classifier.{name}.weight"], found[f"classifier.{name}.bias"])
    rows = lambda ids: encode(ids, [0] * len(ids), config["pad_token_id"] + 1, config, found)
    scores, vectors, count = [], [], 0
    for document in DOCUMENTS:
        pair = [0, *tokens(QUERY, vocab), 2, 2, *tokens(document, vocab), 2]
        count += len(pair)
        scores.append(round(relevance(rows(pair)[0], *get("dense"), *get("out_proj")), 9))
        alone = rows([0, *tokens(document, vocab), 2])
        vectors.append([round(sum(column) / len(alone), 9) for column in zip(*alone)])
    reference = {"query": QUERY, "documents": DOCUMENTS, "tokens": count, "scores": scores, "means": vectors}
    (HERE / "xlm-roberta.json").write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n")


main()
