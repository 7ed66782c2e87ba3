"""Train a seqmix model with Hugging Face's Trainer, save it, and open it again with the Auto classes.

Run: python examples/huggingface_trainer.py --model gated_conv --steps 200 --out runs/trainer
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import seqmix
import seqmix.hf  # registers the Auto classes
from seqmix.data import RowStream, load_corpus, open_stream

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="gated_conv", help="one of seqmix.list_models()")
parser.add_argument("--data", default="python-stdlib", help="a text file, a folder, or a built-in corpus")
parser.add_argument("--params", default="300k", help="size without the embedding")
parser.add_argument("--context", type=int, default=128)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", default="runs/trainer")
parser.add_argument("--gradient-checkpointing", action="store_true")


class Rows(torch.utils.data.Dataset):
    """The first rows of a packed stream, as the Trainer wants them: targets are shifted already."""

    def __init__(self, stream: RowStream, count: int) -> None:
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.stream.rows(index, 1)
        documents = torch.zeros_like(row.input_ids) if row.document_ids is None else row.document_ids
        return {"input_ids": row.input_ids[0], "shift_labels": row.targets[0], "document_ids": documents[0]}


if __name__ == "__main__":
    chosen = parser.parse_args()
    torch.manual_seed(0)
    corpus = load_corpus(chosen.data)
    model = seqmix.create_model(
        chosen.model, vocab_size=corpus.vocab_size, params=chosen.params, context=chosen.context
    )
    arguments = TrainingArguments(
        output_dir=chosen.out,
        max_steps=chosen.steps,
        per_device_train_batch_size=8,
        learning_rate=seqmix.models.preset(chosen.model).learning_rate(model.non_embedding_parameters),
        lr_scheduler_type="cosine",
        warmup_steps=max(1, chosen.steps // 10),
        weight_decay=0.1,
        gradient_checkpointing=chosen.gradient_checkpointing,
        logging_steps=max(1, chosen.steps // 10),
        save_strategy="no",
        report_to=[],
        label_names=["shift_labels"],
        seed=0,
    )
    stream = open_stream(corpus.train, chosen.context, seed=0)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Rows(stream, 8 * chosen.steps), processing_class=corpus.tokenizer
    )
    result = trainer.train()
    trainer.save_model(chosen.out)

    opened = AutoModelForCausalLM.from_pretrained(chosen.out).eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.out)
    prompt = tokenizer("def ", return_tensors="pt")
    text = opened.generate(**prompt, max_new_tokens=60, do_sample=True, temperature=0.8)
    print(f"mean training loss {result.training_loss:.3f} nats per token")
    print(tokenizer.decode(text[0], skip_special_tokens=True))
