"""What is inspected: a trained run or an untrained preset, and the texts that it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from seqmix.data import ExampleStore, TokenStore, byte_tokenizer, is_task, load_corpus, load_tokenizer
from seqmix.data.tokenizers import BYTES, is_byte_tokenizer
from seqmix.errors import InputError
from seqmix.inspection.texts import SAMPLE, Text, cut_text, encode_text, with_one_token_changed
from seqmix.models import create_model, from_huggingface
from seqmix.models.huggingface import HuggingFaceModel
from seqmix.models.language_model import SeqmixForCausalLM
from seqmix.models.loading import open_model

DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class Subject:
    """A model and its texts.

    name: of the preset, or of the run's folder; it tells two subjects apart.
    model: in evaluation mode, float32, on the CPU, without gradients of its weights.
    held_out: more tokens of the same kind, for averages; None where only texts were given.
    notes: what a reader should know, in sentences.
    """

    name: str
    model: SeqmixForCausalLM
    is_trained: bool
    tokenizer: PreTrainedTokenizerFast
    texts: list[Text]
    held_out: TokenStore | None = None
    notes: list[str] = field(default_factory=list)


def open_subject(
    name: str,
    *,
    texts: Sequence[str] | None = None,
    data: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    params: str | int | None = None,
    seed: int = 0,
    like: Subject | None = None,
) -> Subject:
    """A model by the folder of its run or by the name of a preset, with texts to read.

    Args:
        name: a folder, or what `seqmix.models.contenders` describes: `gated_conv`, `mixer:retnet`, ...
        texts: to read; None takes the held-out part of `data`. With one text, the second is the same with one token
            changed; a model of recurrences, whose Jacobians take long, reads the one alone.
        data: as `--data` elsewhere; None with no texts takes a sample text.
        tokens: of a text at most; what is longer is cut, and the text says so.
        params: the size of a preset without its embedding, such as "10M"; None is 1M. A run has its own.
        seed: of the weights that a preset draws.
        like: the subject that this one stands beside: it reads the same texts through the same tokenizer.

    Raises:
        InputError: no such run or preset, a text that cannot be read, or a model without mixing matrices.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        if params is not None:
            raise InputError(f"params is {params} for the run {name!r}, which has its size: leave --params out")
        model, tokenizer, is_trained = _open_run(folder), load_tokenizer(folder), True
        if like is not None and tokenizer.get_vocab() != like.tokenizer.get_vocab():
            raise InputError(
                f"{name!r} and {like.name!r} read text through different tokenizers: inspect each by itself"
            )
    else:
        if folder.exists() or "/" in name.removeprefix("hf:"):
            raise InputError(
                f"there is no run in {name!r}: give the folder of a finished run, or a model of seqmix list"
            )
        if data is not None and is_task(data):
            tokenizer = load_corpus(data).tokenizer
        else:
            tokenizer = byte_tokenizer() if like is None else like.tokenizer
        model, is_trained = _draw(name, len(tokenizer), tokens, params, seed), False
    held_out = None if like is None else like.held_out
    notes: list[str] = []
    if like is not None:
        chosen = like.texts
    elif texts:
        names = ["the text", *(f"text {number}" for number in range(2, len(texts) + 1))]
        chosen = [encode_text(tokenizer, text, label, tokens) for label, text in zip(names, texts, strict=True)]
    elif data is not None:
        chosen, held_out = _held_out_texts(data, tokenizer, folder if is_trained else None, tokens)
    else:
        chosen, held_out, notes = _own_texts(tokenizer, folder if is_trained else None, tokens)
    if len(chosen) == 1 and not any(mixer.traits.matrix == "jacobian" for mixer in model.mixers):
        chosen = [*chosen, with_one_token_changed(chosen[0], tokenizer)]
    _check_length(model, name, chosen)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    label = _label(folder if is_trained else None, name, like)
    return Subject(label, model.eval().float(), is_trained, tokenizer, list(chosen), held_out, notes)


def _label(folder: Path | None, name: str, like: Subject | None) -> str:
    """What the page calls a model: a run by its folder without the way to it, told apart from the other."""
    taken = None if like is None else like.name
    if folder is None:
        return name if name != taken else f"{name}, again"
    path = folder.resolve()
    if path.name != taken:
        return path.name
    return f"{path.parent.name}/{path.name}" if f"{path.parent.name}/{path.name}" != taken else f"{path.name}, again"


def _open_run(folder: Path) -> SeqmixForCausalLM:
    model = open_model(folder, dtype=torch.float32)
    if not isinstance(model, HuggingFaceModel):
        return model
    try:
        return from_huggingface(model.inner)
    except InputError as error:
        raise InputError(
            f"the run in {str(folder)!r} is a model of Hugging Face, which has no mixing matrices to show ({error}): "
            "inspect a run of seqmix's own models"
        ) from error


def _draw(name: str, vocab_size: int, tokens: int, params: str | int | None, seed: int) -> SeqmixForCausalLM:
    torch.manual_seed(seed)
    model = create_model(name, vocab_size=vocab_size, params=params, context=tokens)
    if isinstance(model, HuggingFaceModel):
        raise InputError(
            f"{name!r} is a model of Hugging Face, which has no mixing matrices to show: give a model of seqmix list"
        )
    return model


def _held_out_texts(
    data: str, tokenizer: PreTrainedTokenizerFast, folder: Path | None, tokens: int
) -> tuple[list[Text], TokenStore | None]:
    """The beginnings of the first two documents of the held-out part that are long enough, or two rows of a task."""
    spec = BYTES if folder is None or (is_byte_tokenizer(tokenizer) and not is_task(data)) else str(folder)
    corpus = load_corpus(data, valid=_own_valid(folder, data), tokenizer=spec)
    name = Path(corpus.name).name or corpus.name
    if isinstance(corpus.valid, ExampleStore):
        rows = [corpus.valid.read(torch.arange(2).numpy()).tokens[row].tolist() for row in range(2)]
        return [cut_text(tokenizer, ids, f"{name}, row {number}", tokens) for number, ids in enumerate(rows)], None
    store = corpus.valid
    lengths = store.documents[1:] - store.documents[:-1]
    longest = int(min(tokens, lengths.max()))
    found = [int(document) for document in (lengths >= longest).nonzero()[0][:2]]
    chosen = []
    for document in found:
        first, last = store.documents[document : document + 2]
        ids = store.tokens[first:last].astype("int64").tolist()
        chosen.append(cut_text(tokenizer, ids, f"{name}, document {document}", tokens))
    return chosen, store


def _own_texts(
    tokenizer: PreTrainedTokenizerFast, folder: Path | None, tokens: int
) -> tuple[list[Text], TokenStore | None, list[str]]:
    """Of what a run was trained on, the held-out part; a sample text for a preset, or where that data is gone."""
    notes = []
    data = None if folder is None else _settings(folder).get("data")
    if data is not None:
        try:
            return *_held_out_texts(data, tokenizer, folder, tokens), []
        except InputError as error:
            notes.append(f"The text that it was trained on cannot be read ({error}): a sample text is shown.")
    return [encode_text(tokenizer, SAMPLE, "a sample text", tokens)], None, notes


def _settings(folder: Path) -> dict[str, Any]:
    """What a run was trained with; empty where that is not known."""
    try:
        return dict(json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _own_valid(folder: Path | None, data: str) -> str | None:
    """The held-out part that the training of a run named, where it was trained on the same data."""
    settings = {} if folder is None else _settings(folder)
    return settings.get("valid") if settings.get("data") == data else None


def _check_length(model: SeqmixForCausalLM, name: str, texts: Sequence[Text]) -> None:
    """Refuses a text that the model has no positions for."""
    longest = model.longest_context
    for text in texts:
        if longest is not None and len(text.tokens) > longest:
            raise InputError(
                f"{text.name} has {len(text.tokens)} tokens and {name!r} has {longest} positions: "
                f"inspect at most --tokens {longest}"
            )
