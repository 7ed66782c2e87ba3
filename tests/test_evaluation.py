"""Evaluation against plain loops in float64, and `seqmix eval` on good and damaged folders."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from seqmix.cli.main import main
from seqmix.data import TokenStore, byte_tokenizer, memory_store
from seqmix.errors import InputError
from seqmix.evaluation import Evaluation, evaluate, evaluate_sliding, language
from seqmix.models import SeqmixForCausalLM, create_model
from seqmix.models.loading import load_model

END = 256
CONTEXT = 16
DOCUMENTS = [b"one bird sees it\nand a cat", b"the dog", b"", b"a cat hears them. " * 9, b"x"]


@pytest.fixture
def store() -> TokenStore:
    return memory_store(DOCUMENTS, END)


def tiny(name: str = "transformer", context: int = CONTEXT) -> SeqmixForCausalLM:
    """A float64 model whose predictions differ clearly from token to token."""
    model = create_model(name, vocab_size=258, context=context, hidden_size=16, num_hidden_layers=2)
    nn.Module.to(model, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def uniform() -> SeqmixForCausalLM:
    model = tiny()
    nn.init.zeros_(model.lm_head.weight)
    return model


def row_losses(model: SeqmixForCausalLM, store: TokenStore, context: int) -> list[tuple[int, float]]:
    """(tokens of the document read before, nats) of every target: one token after another, row by row."""
    tokens = store.tokens.astype("int64")
    results = []
    for first in range(0, len(tokens) - 1, context):
        begin = first
        for place in range(first, min(first + context, len(tokens) - 1)):
            if tokens[place] == END:
                begin = place
            logits = model(torch.tensor(tokens[begin : place + 1])[None], use_cache=False).logits[0, -1]
            results.append((place - begin, -float(logits.log_softmax(-1)[tokens[place + 1]])))
    return results


def test_a_uniform_model_takes_the_logarithm_of_the_vocabulary(store: TokenStore) -> None:
    result = evaluate(uniform(), store, context=CONTEXT)
    targets = sum(len(document) + 1 for document in DOCUMENTS) - 1
    text = sum(map(len, DOCUMENTS))
    assert result.tokens == targets
    assert result.bytes == text
    assert result.loss == pytest.approx(math.log(258), rel=1e-14)
    assert result.perplexity == pytest.approx(258, rel=1e-12)
    assert result.bits_per_byte == pytest.approx(math.log2(258) * targets / text, rel=1e-14)
    assert result.loss_by_position.bits == pytest.approx([math.log2(258)] * CONTEXT, rel=1e-14)
    assert result.loss_by_position.positions == list(range(CONTEXT))


@pytest.mark.parametrize("name", ["transformer", "mamba2"])
def test_equals_a_loop_over_positions(name: str, store: TokenStore) -> None:
    model = tiny(name)
    expected = row_losses(model, store, CONTEXT)
    result = evaluate(model, store, context=CONTEXT, batch_size=3)
    nats = math.fsum(loss for _, loss in expected)
    assert result.tokens == len(expected)
    assert result.loss == pytest.approx(nats / len(expected), rel=1e-10)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / store.bytes, rel=1e-10)
    assert result.word_perplexity == pytest.approx(math.exp(nats / store.words), rel=1e-9)
    for position, bits in zip(*result.loss_by_position, strict=True):
        there = [loss / math.log(2) for offset, loss in expected if offset == position]
        assert bits == pytest.approx(math.fsum(there) / len(there), rel=1e-10)
    blocks = len(result.bits_by_block)
    first = [loss / math.log(2) for _, loss in expected][: -(-len(expected) // blocks)]
    assert result.bits_by_block[0] == pytest.approx(
        math.fsum(first) / len(first) * len(expected) / store.bytes, rel=1e-10
    )


def test_words_count_as_in_papers_on_wikitext() -> None:
    store = memory_store([b"one two three\nfour\n"], END)
    result = evaluate(uniform(), store, context=CONTEXT)
    assert result.words == 6  # four words and two ends of lines
    assert result.word_perplexity == pytest.approx(258 ** (19 / 6), rel=1e-12)


def test_does_not_depend_on_the_batch_size(store: TokenStore) -> None:
    model = tiny("convsamba")
    results = [evaluate(model, store, context=CONTEXT, batch_size=size) for size in (1, 2, 5, 64)]
    for other in results[1:]:
        assert_equal(results[0], other)


def test_a_batch_with_too_many_logits_is_taken_apart(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    whole = evaluate(model, store, context=CONTEXT, batch_size=64)
    seen = []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(258 * outputs.loss.numel()))
    monkeypatch.setattr(language, "MAX_LOGITS", 2 * CONTEXT * 258)
    assert_equal(whole, evaluate(model, store, context=CONTEXT, batch_size=64))
    assert max(seen) <= 2 * CONTEXT * 258


def assert_equal(one: Evaluation, other: Evaluation) -> None:
    assert one.tokens == other.tokens
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-12)
    assert one.bits_by_block == pytest.approx(other.bits_by_block, rel=1e-10)
    assert one.loss_by_position_bins.positions == other.loss_by_position_bins.positions
    assert one.loss_by_position_bins.bits == pytest.approx(other.loss_by_position_bins.bits, rel=1e-10)


def test_bfloat16_is_near_float32(store: TokenStore) -> None:
    model = tiny("gated_conv")
    exact = evaluate(model, store, context=CONTEXT).bits_per_byte
    nn.Module.to(model, torch.bfloat16)
    assert evaluate(model, store, context=CONTEXT).bits_per_byte == pytest.approx(exact, rel=0.02)


def test_a_part_is_spread_over_the_text_and_keeps_the_ratio_of_bytes(store: TokenStore) -> None:
    result = evaluate(uniform(), store, context=CONTEXT, max_tokens=3 * CONTEXT + 5)
    assert result.tokens == 3 * CONTEXT
    assert result.bits_per_byte == pytest.approx(math.log2(258) * (len(store) - 1) / store.bytes)
    model = tiny()
    rows = [loss for _, loss in row_losses(model, store, CONTEXT)]
    full = (len(store) - 1) // CONTEXT
    chosen = [rows[row * CONTEXT : (row + 1) * CONTEXT] for row in (0, full // 3, 2 * full // 3)]
    part = evaluate(model, store, context=CONTEXT, max_tokens=3 * CONTEXT)
    assert part.loss == pytest.approx(math.fsum(loss for row in chosen for loss in row) / (3 * CONTEXT), rel=1e-10)


def test_training_mode_comes_back(store: TokenStore) -> None:
    model = tiny().train()
    evaluate(model, store, context=CONTEXT)
    assert model.training


@pytest.mark.parametrize("name", ["mamba2", "convsamba", "lstm", "local_transformer"])
def test_carried_state_sees_the_whole_document(name: str, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmix.evaluation.sliding.PIECE", 7)
    model = tiny(name)
    whole = evaluate(model, store, context=len(store), batch_size=1)
    for lanes in (1, 3, 16):
        carried = evaluate_sliding(model, store, batch_size=lanes)
        assert carried.tokens == whole.tokens
        assert_equal(carried, whole)


def test_windows_score_every_target_once_with_what_they_hold(store: TokenStore) -> None:
    model = tiny()
    stride = 5
    tokens = store.tokens.astype("int64")
    nats = []
    for place in range(len(tokens) - 1):
        # The windows end at context, context + stride, ...: the first that ends beyond a place scores it.
        end = CONTEXT + max(0, -(-(place + 1 - CONTEXT) // stride)) * stride
        begin = max(end - CONTEXT, max(index for index in range(place + 1) if tokens[index] == END))
        logits = model(torch.tensor(tokens[begin : place + 1])[None], use_cache=False).logits[0, -1]
        nats.append(-float(logits.log_softmax(-1)[tokens[place + 1]]))
    for batch_size in (1, 4):
        result = evaluate_sliding(model, store, context=CONTEXT, stride=stride, batch_size=batch_size)
        assert result.tokens == len(nats)
        assert result.loss == pytest.approx(math.fsum(nats) / len(nats), rel=1e-10)


def test_a_stride_of_the_context_is_the_plain_evaluation(store: TokenStore) -> None:
    model = tiny("convtransformer")
    sliding = evaluate_sliding(model, store, context=CONTEXT, stride=CONTEXT)
    assert sliding.loss == pytest.approx(evaluate(model, store, context=CONTEXT).loss, rel=1e-12)


def test_a_growing_state_is_evaluated_in_windows_of_half_the_context(store: TokenStore) -> None:
    model = tiny()
    result = evaluate_sliding(model, store)
    assert result.loss == evaluate_sliding(model, store, context=CONTEXT, stride=CONTEXT // 2).loss
    assert max(result.loss_by_position.positions) < CONTEXT


def test_positions_in_bins_keep_the_mean(store: TokenStore) -> None:
    result = evaluate_sliding(tiny("mamba2"), store)
    positions, bits = result.loss_by_position
    assert positions == sorted(positions)
    assert len(positions) == max(map(len, DOCUMENTS)) + 1
    bins = result.loss_by_position_bins
    assert len(bins.bits) < len(bits)
    assert bins.positions[:8] == list(range(8))
    assert min(bits) <= min(bins.bits) <= max(bins.bits) <= max(bits)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stride": CONTEXT + 1}, "stride is 17"),
        ({"stride": 0}, "stride is 0"),
        ({"max_tokens": 0}, "tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_sizes_that_cannot_be_used_are_named(options: dict[str, int], words: str, store: TokenStore) -> None:
    with pytest.raises(InputError, match=words):
        evaluate_sliding(tiny(), store, **options)


def test_a_text_without_bytes_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="held-out part"):
        evaluate(tiny(), memory_store([b""], END), context=CONTEXT)
    with pytest.raises(InputError, match="no text"):
        evaluate(tiny(), memory_store([b"", b""], END), context=CONTEXT)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    model = create_model("gated_conv", vocab_size=258, context=CONTEXT, hidden_size=16, num_hidden_layers=2)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_command_prints_one_document(run_folder: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_folder), "--data", str(corpus_folder), "--json", "--device", "cpu"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert {"bits_per_byte", "perplexity", "word_perplexity", "tokens"} <= plain.keys()
    assert plain["tokens"] == plain["held_out_tokens"] - 1
    assert plain["perplexity"] == pytest.approx(math.exp(plain["loss"]))
    assert plain["bits_per_byte"] * plain["bytes"] == pytest.approx(plain["loss"] / math.log(2) * plain["tokens"])
    words = ["eval", str(run_folder), "--data", str(corpus_folder), "--sliding", "--batch-size", "3", "--json"]
    assert main(words) == 0
    sliding = json.loads(capsys.readouterr().out)
    assert sliding["tokens"] == plain["tokens"]
    assert sliding["bits_per_byte"] != plain["bits_per_byte"]
    assert main(["eval", str(run_folder), "--data", str(corpus_folder), "--max-tokens", "200"]) == 0
    assert "bits per byte" in capsys.readouterr().out


def refuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail as bad input, with one line."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_folders_that_are_no_runs_are_explained(
    run_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(corpus_folder)]
    assert "no folder" in refuse(["eval", str(tmp_path / "nothing"), *data], capsys)
    assert "no config.json" in refuse(["eval", str(corpus_folder), *data], capsys)
    assert "--data" in refuse(["eval", str(run_folder)], capsys)
    assert "--sliding" in refuse(["eval", str(run_folder), *data, "--stride", "4"], capsys)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(run_folder, tmp_path / name))

    truncated = copy("truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    assert "truncated" in refuse(["eval", str(truncated.parent), *data], capsys)
    truncated.write_bytes(b"")
    assert "truncated" in refuse(["eval", str(truncated.parent), *data], capsys)

    unfinished = copy("unfinished")
    (unfinished / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refuse(["eval", str(unfinished), *data], capsys)
    (unfinished / "checkpoints").mkdir()
    assert "--resume" in refuse(["eval", str(unfinished), *data], capsys)

    other = copy("other") / "config.json"
    document = json.loads(other.read_text())
    other.write_text(json.dumps({**document, "model_type": "llama"}))
    assert "'llama'" in refuse(["eval", str(other.parent), *data], capsys)
    other.write_text(json.dumps({**document, "mixers": [{"name": "mixer_of_tomorrow"}]}))
    assert "mixer_of_tomorrow" in refuse(["eval", str(other.parent), *data], capsys)
    other.write_text(json.dumps({**document, "hidden_size": 24}))
    assert "do not fit" in refuse(["eval", str(other.parent), *data], capsys)
    other.write_text("{")
    assert "damaged" in refuse(["eval", str(other.parent), *data], capsys)

    versioned = copy("versioned")
    (versioned / "settings.json").write_text(json.dumps({"format": 99, "settings": {}}))
    assert "format 99" in refuse(["eval", str(versioned), *data], capsys)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_loaded_model_is_the_saved_one(run_folder: Path, dtype: torch.dtype | None) -> None:
    model = load_model(run_folder, dtype=dtype)
    saved = SeqmixForCausalLM.from_pretrained(run_folder, dtype=dtype or torch.float32)
    tokens = torch.randint(256, (2, 9))
    assert not model.training
    assert model.dtype == saved.dtype
    assert torch.equal(model(tokens, use_cache=False).logits, saved.eval()(tokens, use_cache=False).logits)
