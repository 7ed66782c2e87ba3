"""transformers' models on our kernels, beside the same models as they come, on a CPU.

    python benchmarks/patched_transformers.py [--models mamba,mamba2] [--rounds 3] [--threads 2] [--json]

One small model of each type with random weights: a forward over 1024 tokens, a forward with its backward (over 128
where transformers' own would take minutes), and tokens generated one by one with a cache through `generate()`. The
patch is put on and taken off between the turns of the two sides, outside of the time. A ratio is unpatched / patched,
formed round by round: above 1 our kernels are faster. Logits are compared first, and nothing is timed when they
differ.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from seqmix.bench.timing import Quartiles, busy_warning, environment, quartiles, ratio, take_turns
from seqmix.kernels import patch_transformers

ATTENTION = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024}
MAMBA2 = {"mamba_n_heads": 12, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {"num_hidden_layers": 12},
    "falcon_mamba": {"num_hidden_layers": 12},
    "mamba2": {"num_hidden_layers": 12, "num_heads": 12, "head_dim": 64, "n_groups": 1, "state_size": 128},
    "jamba": {
        **ATTENTION,
        "num_hidden_layers": 8,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_dt_rank": 24,
        "attn_layer_offset": 3,
        "attn_layer_period": 4,
    },
    "bamba": {**ATTENTION, **MAMBA2, "num_hidden_layers": 8, "attn_layer_indices": [3]},
    "falcon_h1": {**ATTENTION, **MAMBA2, "num_hidden_layers": 6, "mamba_d_ssm": 768, "head_dim": 64},
    "granitemoehybrid": {
        **ATTENTION,
        **MAMBA2,
        "num_hidden_layers": 6,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 1024,
        "layer_types": ["mamba"] * 3 + ["attention"] + ["mamba"] * 2,
    },
    "nemotron_h": {
        **ATTENTION,
        "mamba_num_heads": 12,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 1,
        "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mamba", "mlp", "mamba", "mlp"],
    },
    "zamba": {
        "num_hidden_layers": 7,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 1024,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 24,
        "attn_layer_offset": 2,
        "attn_layer_period": 3,
    },
    "zamba2": {
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 1024,
        "mamba_d_state": 128,
        "n_mamba_heads": 12,
        "mamba_headdim": 64,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [3],
        "layers_block_type": ["mamba"] * 3 + ["hybrid"] + ["mamba"] * 4,
    },
    "lfm2": {**ATTENTION, "num_hidden_layers": 8, "layer_types": (["conv"] * 3 + ["full_attention"]) * 2},
    "recurrent_gemma": {
        **ATTENTION,
        "num_hidden_layers": 6,
        "head_dim": 64,
        "lru_width": 384,
        "attention_window_size": 256,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "qwen3_next": {
        **ATTENTION,
        "num_hidden_layers": 4,
        "head_dim": 64,
        "linear_num_value_heads": 6,
        "linear_num_key_heads": 6,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
}
"""Models of about 10 to 20 million parameters, of each type that the installed transformers has."""
COMMON = {"vocab_size": 4096, "hidden_size": 384, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TIME = 1024
GENERATED = 32
SLOW_TO_TRAIN = {"mamba", "falcon_mamba", "jamba", "recurrent_gemma", "zamba"}
"""transformers' own training of these takes a time that grows with the square of the length: minutes a step at 1024."""
SHORT_TIME = 128


def build(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(COMMON | CONFIGS[model_type])))


class Turns:
    """Puts the patch on or takes it off before a side's turn."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.patch = None

    def on(self) -> None:
        if self.patch is None:
            self.patch = patch_transformers([self.model_type])

    def off(self) -> None:
        if self.patch is not None:
            self.patch.undo()
            self.patch = None


def measure(model_type: str, rounds: int, long: bool) -> dict[str, Any]:
    model, turns = build(model_type), Turns(model_type)
    tokens = torch.randint(3, COMMON["vocab_size"], (1, TIME))
    prompt = tokens[:, :16]
    training_tokens = tokens[:, : SHORT_TIME if model_type in SLOW_TO_TRAIN and not long else TIME]

    def forward() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    def both() -> None:
        model.train()
        model.zero_grad()
        model(training_tokens, labels=training_tokens, use_cache=False).loss.backward()

    def generate() -> None:
        model.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=GENERATED,
            min_new_tokens=GENERATED,
            do_sample=False,
        )

    expected = forward()
    turns.on()
    difference = float((forward() - expected).abs().max() / expected.abs().max())
    if difference > 1e-4:
        raise SystemExit(f"{model_type}: the logits differ by {difference:.1e} of the largest: nothing is timed")
    result: dict[str, Any] = {"parameters": sum(each.numel() for each in model.parameters()), "difference": difference}
    length = training_tokens.shape[1]
    for name, work, count in (("forward", forward, TIME), ("training", both, length), ("decode", generate, GENERATED)):
        times = take_turns(
            {"unpatched": work, "patched": work},
            rounds=rounds,
            warmup=1,
            prepare={"unpatched": turns.off, "patched": turns.on},
        )
        result[name] = {
            "tokens": count,
            "ratio": ratio(times, "unpatched", "patched").to_dict(),
            "patched_tokens_per_second": quartiles(count / each for each in times["patched"]).to_dict(),
            "unpatched_tokens_per_second": quartiles(count / each for each in times["unpatched"]).to_dict(),
        }
    turns.off()
    return result


def show(model_type: str, result: dict[str, Any]) -> None:
    cells = [f"{model_type:<17}{result['parameters'] / 1e6:5.1f} M"]
    for name in ("forward", "training", "decode"):
        found = Quartiles(**result[name]["ratio"])
        speed = result[name]["patched_tokens_per_second"]["median"]
        cells.append(
            f"{found.median:7.2f}× ({found.low:.2f}–{found.high:.2f}) {speed:6.0f}/s T={result[name]['tokens']}"
        )
    print("  ".join(cells), flush=True)


def main() -> None:
    present = [model_type for model_type in CONFIGS if model_type in CONFIG_MAPPING]
    parser = argparse.ArgumentParser(description="transformers' models with and without our kernels.")
    parser.add_argument("--models", type=lambda text: text.split(","), default=present)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--long", action="store_true", help="train Mamba-1 models on 1024 tokens too (hours)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warning = busy_warning()
    if not arguments.json:
        if warning:
            print(warning)
        print("unpatched / patched (quartiles), and the tokens/s that are reached with our kernels")
        print(f"{'':<26}{'forward':<42}{'forward + backward':<42}{'generate()'}")
    models = {}
    for model_type in arguments.models:
        models[model_type] = measure(model_type, arguments.rounds, arguments.long)
        if not arguments.json:
            show(model_type, models[model_type])
    if arguments.json:
        print(json.dumps({"environment": environment(), "warning": warning, "models": models}, indent=1))


if __name__ == "__main__":
    main()
