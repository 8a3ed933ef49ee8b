#!/usr/bin/env python3
"""Writes checkpoints/qwen3-vl-moe and refs/qwen3-vl-moe beside this file: a tiny random Qwen3-VL-MoE and what Hugging Face makes of it.

usage: make_qwen3_vl_moe.py        (needs torch, transformers==4.57.1, tokenizers, safetensors, numpy; a minute on one core)

Tokenizer, template and preprocessor are qwen3-vl's; pictures come from refs/preprocess, as already resized. Weights are bf16 in the
file and f32 in the reference. Seeds are tried until every greedy choice and every choice of experts is clear of rounding.
"""
import json
import os
import pathlib
import shutil

os.environ.update(MKL_CBWR="COMPATIBLE", OMP_NUM_THREADS="1")
import numpy
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration

HERE = pathlib.Path(__file__).resolve().parent
NAME, LIKE = "qwen3-vl-moe", "qwen3-vl"
GREEDY, MARGIN_MIN, ROUTER_GAP_MIN = 32, 0.01, 2e-5
PICTURES = ["square", "tall"]
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
CASES = {
    "text_only": ([], TURN.format("Which one is larger?")),
    "one_image": (["square"], TURN.format(SHOWN + "Describe the picture.")),
    "two_images": (["tall", "square"], TURN.format(f"First: {SHOWN} second: {SHOWN} Which one is larger?")),
}
TEXT = dict(
    vocab_size=640, hidden_size=48, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[1], rms_norm_eps=1e-6,
    rope_theta=5000000.0, rope_scaling={"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    max_position_embeddings=2048, tie_word_embeddings=False, attention_bias=False, bos_token_id=600, eos_token_id=602, hidden_act="silu",
)
VISION = dict(
    depth=3, hidden_size=32, intermediate_size=56, num_heads=2, num_position_embeddings=576, out_hidden_size=48, patch_size=16,
    spatial_merge_size=2, temporal_patch_size=2, in_channels=3, deepstack_visual_indexes=[0, 1], hidden_act="gelu_pytorch_tanh",
)
TOKENS = dict(image_token_id=606, video_token_id=607, vision_start_token_id=603, vision_end_token_id=604, tie_word_embeddings=False)


def model_of(seed):
    config = Qwen3VLMoeConfig(text_config=dict(TEXT), vision_config=dict(VISION), **TOKENS)
    config._attn_implementation = "eager"
    model = Qwen3VLMoeForConditionalGeneration(config).float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            if p.ndim == 1:
                value = 0.05 * noise + (0.0 if name.endswith("bias") else 1.0)
            elif name.endswith(("embed_tokens.weight", "pos_embed.weight")):
                value = noise
            elif "lm_head" in name:
                value = 0.6 * noise
            elif "experts" in name:
                value = 1.4 * noise / p.shape[1] ** 0.5
            else:
                value = noise / (p.numel() / p.shape[0]) ** 0.5
            p.copy_(value.bfloat16().float())
    return model


def pixel_values(u8):
    """[H, W, 3] to [P, 3 * 2 * 16 * 16] in merge order."""
    h, w = u8.shape[0] // 16, u8.shape[1] // 16
    x = (torch.from_numpy(u8.astype(numpy.float32)) - 127.5) / 127.5
    x = x.reshape(h // 2, 2, 16, w // 2, 2, 16, 3).permute(0, 3, 1, 4, 6, 2, 5).reshape(h * w, 3, 1, 256)
    return x.expand(-1, -1, 2, -1).reshape(h * w, 1536), [1, h, w]


class Gaps:
    """The smallest difference between the last expert that was chosen and the first that was not."""

    def __init__(self, model):
        self.least = 1.0
        for layer in model.model.language_model.layers:
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(self.see)

    def see(self, _module, _inputs, logits):
        ranked = logits.float().softmax(-1).sort(-1, descending=True).values
        k = TEXT["num_experts_per_tok"]
        self.least = min(self.least, (ranked[..., k - 1] - ranked[..., k]).min().item())


def answer(model, ids, shown, pictures):
    """The tensors and the greedy answer of one prompt; every step computes the whole sequence anew."""
    prompt, rope = len(ids), {}
    pixels = torch.cat([pictures[name][0] for name in shown]) if shown else None
    grid = torch.tensor([pictures[name][1] for name in shown]) if shown else None
    positions, delta = model.model.get_rope_index(torch.tensor([ids]), grid)
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_hook(lambda _m, _i, out: rope.update(tables=[table[0, :prompt].clone() for table in out]))
    steps, tensors = [], {}
    for step in range(GREEDY):
        model.model.rope_deltas = None
        given = torch.tensor([ids])
        # Without a mask, the repeated positions of a picture would be taken for several packed prompts.
        mask = torch.ones_like(given)
        row = model(input_ids=given, attention_mask=mask, pixel_values=pixels, image_grid_thw=grid, use_cache=False).logits[0]
        if step == 0:
            tensors["logits"] = row.clone()
        best = row[-1].topk(5)
        steps.append({"token": best.indices[0].item(), "margin": round((best.values[0] - best.values[1]).item(), 6)})
        ids = [*ids, steps[-1]["token"]]
    hook.remove()
    tensors |= {"input_ids": torch.tensor(ids[:prompt]), "last_step_logits": row[-1].clone(), "position_ids": positions[:, 0].contiguous()}
    tensors |= {"rope.cos": rope["tables"][0], "rope.sin": rope["tables"][1]}
    rows = sorted({0, prompt // 3, 2 * prompt // 3, *range(prompt - 6, prompt)})
    tensors |= {"logits": tensors["logits"][rows].contiguous(), "logit_rows": torch.tensor(rows)}
    if shown:
        tensors["image_grid_thw"] = grid
    facts = {
        "rope_delta": delta.item(), "first_decode_position": prompt + delta.item(), "prompt_tokens": prompt, "all_rows": False,
        "greedy": ids[prompt:], "steps": steps, "min_margin": min(step["margin"] for step in steps), "distinct": len(set(ids[prompt:])),
    }
    return facts, tensors


def look(model, pictures):
    """What the tower makes of all pictures in one call."""
    tower, seen = model.model.visual, {}
    keep = lambda name: lambda _m, _i, out: seen.update({name: out.clone()})
    hooks = [tower.patch_embed.register_forward_hook(keep("patch_embed"))]
    hooks += [block.register_forward_hook(keep(f"block.{i}.out")) for i, block in enumerate(tower.blocks)]
    grid = torch.tensor([pictures[name][1] for name in PICTURES])
    merged, deepstack = tower(torch.cat([pictures[name][0] for name in PICTURES]), grid_thw=grid)
    for hook in hooks:
        hook.remove()
    rotary = tower.rot_pos_emb(grid)
    angles = torch.cat([rotary, rotary], -1)
    seen |= {"grid_thw": grid, "pos_embed": tower.fast_pos_embed_interpolate(grid), "merged": merged}
    seen |= {"rope.cos": angles.cos(), "rope.sin": angles.sin()} | {f"deepstack.{k}": found for k, found in enumerate(deepstack)}
    return {name: found.contiguous() for name, found in seen.items()}


def rope_index(model):
    cases = []
    for items in ([5], [2, [1, 4, 6], 3], [1, [1, 2, 8], [1, 8, 2], 1]):
        ids, grids = [], []
        for item in items:
            if isinstance(item, int):
                ids += [11] * item
            else:
                ids += [603] + [606] * (item[1] * item[2] // 4) + [604]
                grids.append(item)
        positions, delta = model.model.get_rope_index(torch.tensor([ids]), torch.tensor(grids) if grids else None)
        cases.append({
            "items": items, "pad_left": 0, "input_ids": ids, "image_grid_thw": grids, "video_grid_thw": [],
            "position_ids": positions[:, 0].tolist(), "rope_delta": delta.item(),
        })
    return cases


def axes():
    side = int(VISION["num_position_embeddings"] ** 0.5)
    found = []
    for n in (2, 5, 12, 24, 31):
        at = torch.linspace(0, side - 1, n)
        found.append({"n": n, "floor": at.int().tolist(), "frac": [round(x, 7) for x in (at - at.int()).tolist()]})
    return {"grid_side": side, "axes": found}


def expanded(tokenizer, text, shown, pictures):
    ids, left = [], list(shown)
    for id in tokenizer.encode(text, add_special_tokens=False).ids:
        ids += [id] * (pictures[left.pop(0)][0].shape[0] // 4) if id == TOKENS["image_token_id"] else [id]
    return ids


def write(model, cases, seed, pictures):
    checkpoint, refs = HERE / "checkpoints" / NAME, HERE / "refs" / NAME
    for folder in (checkpoint, refs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    like = HERE / "checkpoints" / LIKE
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "generation_config.json", "preprocessor_config.json"):
        shutil.copy(like / file, checkpoint / file)
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe", "transformers_version": "4.57.1",
        "torch_dtype": "bfloat16", **TOKENS, "text_config": {**TEXT, "dtype": "bfloat16", "model_type": "qwen3_vl_moe_text"},
        "vision_config": {**VISION, "model_type": "qwen3_vl_moe"},
    }
    (checkpoint / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {name: p.detach().bfloat16().contiguous() for name, p in model.state_dict().items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    facts = {"seed": seed, "vision_images": PICTURES, "cases": {}}
    for name, (found, tensors) in cases.items():
        facts["cases"][name] = {"images": CASES[name][0], "text": CASES[name][1], **found}
        save_file(tensors, refs / f"{name}.safetensors")
    (refs / "cases.json").write_text(json.dumps(facts, indent=1) + "\n")
    save_file(look(model, pictures), refs / "vision.safetensors")
    (refs / "rope_index.json").write_text(json.dumps(rope_index(model)) + "\n")
    (refs / "pos_embed_axis.json").write_text(json.dumps(axes()) + "\n")


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    resized = load_file(HERE / "refs/preprocess/images.safetensors")
    pictures = {name: pixel_values(resized[f"{name}.resized_u8"]) for name in PICTURES}
    for name, (values, _) in pictures.items():
        known = resized.get(f"{name}.pixel_values")
        assert known is None or numpy.abs(known - values.numpy()).max() < 1e-6, name
    tokenizer = Tokenizer.from_file(str(HERE / "checkpoints" / LIKE / "tokenizer.json"))
    for seed in range(100):
        model = model_of(seed)
        gaps = Gaps(model)
        cases = {name: answer(model, expanded(tokenizer, text, shown, pictures), shown, pictures) for name, (shown, text) in CASES.items()}
        margin = min(facts["min_margin"] for facts, _ in cases.values())
        print(f"seed {seed}: margin {margin:.4f}, router gap {gaps.least:.2e}", flush=True)
        if margin >= MARGIN_MIN and gaps.least >= ROUTER_GAP_MIN and all(facts["distinct"] > 8 for facts, _ in cases.values()):
            return write(model, cases, seed, pictures)
    raise SystemExit("no seed is clear of rounding")


main()
