"""Teach a seqmix model a preference with TRL's DPO trainer: of two answers, the one in lower case.

Run: python examples/huggingface_dpo.py RUN --steps 30 --out runs/preferred
"""

from __future__ import annotations

import argparse
import random

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import seqmix.hf  # noqa: F401 - registers the Auto classes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="a run folder, or any folder that save_pretrained wrote")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--out", default="runs/preferred")

WORDS = ("return", "value", "index", "name", "self", "error", "string", "number", "result", "list")


def pairs(count: int) -> Dataset:
    """Prompts with an answer in lower case (chosen) and the same in upper case (rejected)."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        prompt, answer = (" ".join(draw.choices(WORDS, k=length)) for length in (4, 3))
        rows.append({"prompt": prompt + " ", "chosen": answer, "rejected": answer.upper()})
    return Dataset.from_list(rows)


if __name__ == "__main__":
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(chosen.run)
    tokenizer = AutoTokenizer.from_pretrained(chosen.run)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=chosen.out,
            max_steps=chosen.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            seed=0,
        ),
        train_dataset=pairs(4 * chosen.steps),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    print(f"reward margin {logs[0]['rewards/margins']:.3f} -> {logs[-1]['rewards/margins']:.3f}")
    trainer.save_model(chosen.out)
