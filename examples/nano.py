"""Build, train and sample from a language model with the Python API: seqmix in one sitting.

Run: python examples/nano.py --model convsamba --steps 400
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import seqmix
from seqmix.data import RowStream, load_corpus, open_stream

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="convsamba", help="one of seqmix.list_models()")
parser.add_argument("--data", default="python-stdlib", help="a text file, a folder, or a built-in corpus")
parser.add_argument("--params", default="300k", help="size without the embedding")
parser.add_argument("--context", type=int, default=128)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--prompt", default="def ")
parser.add_argument("--new-tokens", type=int, default=200)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A tenth of the steps up, then a half cosine down to a tenth."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(model: torch.nn.Module, stream: RowStream, steps: int, batch_size: int, peak: float) -> None:
    """AdamW over the first rows of the stream; prints the loss in bits per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    started = time.perf_counter()
    for step in range(steps):
        batch = stream.rows(step * batch_size, batch_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = model(batch.input_ids, shift_labels=batch.targets, document_ids=batch.document_ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            print(f"step {step:4d}  {loss.item() / math.log(2):.3f} bits per token  {seconds:.1f} s", flush=True)


@torch.no_grad()
def sample(model: seqmix.models.SeqmixForCausalLM, prompt: list[int], count: int) -> list[int]:
    """Reads the prompt once, then draws token by token: the state is all that is kept."""
    logits, state = model.prefill(torch.tensor([prompt]))
    tokens = []
    for _ in range(count):
        token = torch.multinomial(torch.softmax(logits / 0.8, dim=-1), 1)[:, 0]
        tokens.append(int(token))
        logits, state = model.step(token, state)
    return tokens


if __name__ == "__main__":
    chosen = parser.parse_args()
    torch.manual_seed(0)
    corpus = load_corpus(chosen.data)
    model = seqmix.create_model(
        chosen.model, vocab_size=corpus.vocab_size, params=chosen.params, context=chosen.context
    )
    print(f"{chosen.model}: {model.non_embedding_parameters:,} parameters, receptive field {model.receptive_field}")
    peak = seqmix.models.preset(chosen.model).learning_rate(model.non_embedding_parameters)
    train(model, open_stream(corpus.train, chosen.context, seed=0), chosen.steps, chosen.batch_size, peak)
    written = sample(model.eval(), corpus.tokenizer.encode(chosen.prompt), chosen.new_tokens)
    print(chosen.prompt + corpus.tokenizer.decode(written))
