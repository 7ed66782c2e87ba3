"""Adapt a seqmix model to other text with PEFT's LoRA: only small matrices beside the projections are trained.

Run: python examples/huggingface_lora.py RUN --data other.txt --steps 100 --out runs/adapted
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import seqmix.hf  # noqa: F401 - registers the Auto classes
from seqmix.data import Batch, load_corpus, open_stream

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="a run folder, or any folder that save_pretrained wrote")
parser.add_argument("--data", default="python-stdlib")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--out", default="runs/adapted")


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Batch) -> float:
    """Nats per token on some rows."""
    return model(input_ids=rows.input_ids, shift_labels=rows.targets, document_ids=rows.document_ids).loss.item()


if __name__ == "__main__":
    chosen = parser.parse_args()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(chosen.run)
    tokenizer = AutoTokenizer.from_pretrained(chosen.run)
    corpus = load_corpus(chosen.data)
    projections = sorted(
        {name.rpartition(".")[2] for name, module in base.model.layers.named_modules() if isinstance(module, nn.Linear)}
    )
    config = LoraConfig(r=chosen.rank, lora_alpha=2 * chosen.rank, target_modules=projections, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.print_trainable_parameters()

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    stream = open_stream(corpus.train, base.config.max_position_embeddings, seed=0)
    rows = stream.rows(0, 8)
    before = mean_loss(model, rows)
    for step in range(chosen.steps):
        batch = stream.rows(8 * step, 8)
        loss = model(
            input_ids=batch.input_ids, shift_labels=batch.targets, document_ids=batch.document_ids, use_cache=False
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {before:.3f} -> {mean_loss(model, rows):.3f} nats per token")
    model.save_pretrained(chosen.out)

    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chosen.run), chosen.out)
    merged = again.merge_and_unload().eval()
    with torch.no_grad():
        adapted, whole = model.eval()(input_ids=rows.input_ids).logits, merged(rows.input_ids).logits
    print(f"merged into the weights: logits differ by {(adapted - whole).abs().max().item():.1e}")
    prompt = tokenizer("import ", return_tensors="pt")
    print(tokenizer.decode(merged.generate(**prompt, max_new_tokens=40)[0], skip_special_tokens=True))
