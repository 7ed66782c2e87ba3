"""`seqmix generate` on a small saved model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

import seqmix
from seqmix.cli.main import main
from seqmix.data.tokenizers import byte_tokenizer, save_tokenizer
from seqmix.kernels.library import library

ENGINES = ["torch", "onnx", *(["native"] if library() is not None else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = seqmix.create_model("gated_conv", vocab_size=258, context=64, hidden_size=24, num_hidden_layers=2)
    with torch.no_grad():
        # Peaked enough that letters come out, and the end of the text never does.
        model.model.embed_tokens.weight.mul_(20)
        model.model.embed_tokens.weight[256:] = 0
    path = tmp_path_factory.mktemp("run")
    model.save_pretrained(path)
    save_tokenizer(byte_tokenizer(), path)
    return path


def run(folder: Path, *words: str) -> int:
    return main(["generate", str(folder), *words])


@pytest.mark.parametrize("temperature", ["0", "1.3"])
def test_all_engines_give_the_same_text(folder: Path, temperature: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for engine in ENGINES:
        words = ["--prompt", "Über ", "--max-new-tokens", "40", "--temperature", temperature, "--engine", engine]
        assert run(folder, *words, "--seed", "5", "--top-k", "50", "--top-p", "0.9", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["engine"] == engine
        assert document["prompt_tokens"] == 1 + len("Über ".encode())
        texts.append(document["tokens"])
        assert bytes(document["tokens"]).decode("utf-8", "replace") == document["text"]
    assert len(texts[0]) == 40
    assert texts == [texts[0]] * len(ENGINES)


def test_text_goes_to_stdout_and_numbers_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--max-new-tokens", "12", "--json") == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert run(folder, "--max-new-tokens", "12", "--stats", "--engine", "torch") == 0
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert "torch, f32: read 1 tokens" in captured.err
    assert "tokens/s; state" in captured.err


def test_seeds_differ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for seed in ("1", "1", "2"):
        assert run(folder, "--max-new-tokens", "30", "--temperature", "3", "--seed", seed) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] != found[2]


def test_prompts_from_a_file_and_from_stdin(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("für alle\n", encoding="utf-8")
    assert run(folder, "--prompt", "für alle\n", "--max-new-tokens", "9", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert run(folder, "--prompt-file", str(file), "--max-new-tokens", "9", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert run(folder, "--prompt", "-", "--max-new-tokens", "9", "--json") == 0
    third = json.loads(capsys.readouterr().out)
    assert first["prompt"] == second["prompt"] == third["prompt"] == "für alle\n"
    assert first["tokens"] == second["tokens"] == third["tokens"]


def test_generation_stops_at_the_end_of_a_document(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seqmix.create_model("gated_conv", vocab_size=258, context=64, hidden_size=24, num_hidden_layers=2)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    # Without anything to tell them apart all logits are 0, and the lowest id is taken: make that the end.
    model.config.eos_token_id = 0
    model.save_pretrained(tmp_path)
    save_tokenizer(byte_tokenizer(), tmp_path)
    assert run(tmp_path, "--temperature", "0", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tokens"], document["text"], document["stopped"]) == ([], "", True)
    assert document["decode_tokens_per_second"] is None


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_smaller_weights(folder: Path, engine: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(folder, "--max-new-tokens", "5", "--engine", engine, "--weights", weights, "--json")
    captured = capsys.readouterr()
    if (engine, weights) == ("onnx", "bf16"):
        assert status == 2
        assert "choose int8, or the engine" in captured.err
    else:
        assert status == 0
        assert json.loads(captured.out)["weights"] == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "nativ"], "unknown engine 'nativ': did you mean 'native'?"),
        (["--rings", "int8"], "unknown ring type 'int8': choose one of bf16, f32"),
        (["--rings", "bf16", "--engine", "torch"], "rings 'bf16' cannot be had with the engine torch: choose"),
        (["--device", "cuda", "--engine", "onnx"], "the engine onnx runs on the CPU and device is 'cuda': choose"),
        (["--weights", "int4"], "unknown weight type 'int4': did you mean 'int8'?"),
        (["--max-new-tokens", "0"], "max-new-tokens is 0: it must be at least 1"),
        (["--temperature", "-0.5"], "temperature is -0.5: give a number of at least 0"),
        (["--top-k", "0"], "top_k is 0: it must be at least 1"),
        (["--top-p", "2"], "top_p is 2.0: give a share above 0 and at most 1"),
        (["--seed", "-1"], "the seed is -1: it must not be negative"),
        (["--threads", "0"], "threads is 0: it must be at least 1"),
        (["--prompt", "a", "--prompt-file", "b"], "both a prompt and the prompt file 'b' were given"),
        (["--prompt-file", "/nowhere/x"], "the prompt file '/nowhere/x' cannot be read: No such file"),
    ],
)
def test_bad_options(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


def test_prompts_that_are_no_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"ab\xff")
    assert run(folder, "--prompt-file", str(file)) == 2
    assert "is not UTF-8 text at byte 2" in capsys.readouterr().err


def test_folders_that_hold_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_fastest_engine_is_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--max-new-tokens", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["engine"] == ("native" if "native" in ENGINES else "torch")


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_rings_of_half_the_size(folder: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for rings in ("f32", "bf16"):
        assert run(folder, "--max-new-tokens", "3", "--engine", engine, "--rings", rings, "--json") == 0
        sizes.append(json.loads(capsys.readouterr().out)["state_bytes"])
    assert sizes[0] == 2 * sizes[1]
