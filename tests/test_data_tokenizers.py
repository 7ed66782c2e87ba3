"""Tokenizers: text comes back as it went in, whatever it is, also from a saved folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from seqmix.data import byte_tokenizer, load_corpus, load_tokenizer, train_bpe
from seqmix.data.tokenizers import TextEncoder, is_byte_tokenizer
from seqmix.errors import InputError

HARD_TEXTS = [
    "  two spaces first, one last ",
    "\n\n\tlines\r\n\r",
    "naïve café – “quotes” 日本語 👩‍👩‍👧 𝔘",
    "don't , can 't . ? !",
    "<|end|><|pad|> <|end|",
    "a\0b\x7f\x1b",
    "é vs é",
    "",
]
TRAINING_TEXT = ["the cat sat on the mat, the dog sat on the log.\n" * 50, "naïve 日本語 naïve 日本語\n" * 20]

bytes_tokenizer = byte_tokenizer()
bpe = train_bpe(TRAINING_TEXT, 300)
bytes_encoder, bpe_encoder = TextEncoder(bytes_tokenizer), TextEncoder(bpe)


@given(text=st.text())
def test_bytes_are_their_own_ids(text: str) -> None:
    (ids,) = bytes_encoder.encode([text])
    assert ids.tolist() == list(text.encode())
    assert bytes_tokenizer.decode(ids.tolist()) == text


@given(text=st.text())
def test_bpe_is_lossless(text: str) -> None:
    (ids,) = bpe_encoder.encode([text])
    assert bpe.decode(ids.tolist()) == text
    assert not {bpe.eos_token_id, bpe.pad_token_id} & set(ids.tolist())


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer, bpe], ids=["bytes", "bpe"])
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_saved_tokenizers_open_with_auto_tokenizer(
    tokenizer: PreTrainedTokenizerFast, text: str, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    ids = opened(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert opened.decode(ids) == text
    assert (opened.bos_token, opened.eos_token, opened.pad_token) == ("<|end|>", "<|end|>", "<|pad|>")
    assert (opened.eos_token_id, opened.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(opened) == len(tokenizer)


def test_ids_of_the_byte_tokenizer() -> None:
    assert len(bytes_tokenizer) == 258
    assert (bytes_tokenizer.bos_token_id, bytes_tokenizer.eos_token_id, bytes_tokenizer.pad_token_id) == (256, 256, 257)
    assert is_byte_tokenizer(bytes_tokenizer)
    assert not is_byte_tokenizer(bpe)
    # A prompt may name the special token; a document may not.
    assert bytes_tokenizer("a<|end|>")["input_ids"] == [97, 256]
    assert TextEncoder(bytes_tokenizer).encode(["a<|end|>"])[0].tolist() == list(b"a<|end|>")


def test_bpe_training_is_deterministic_and_learns() -> None:
    again = train_bpe(iter(TRAINING_TEXT), 300)
    assert again.backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()
    assert len(bpe) <= 300
    (ids,) = TextEncoder(bpe).encode(["the cat sat on the mat"])
    assert len(ids) < 10


def test_a_tokenizer_file_is_used_as_it_is(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat <|end|> on the mat.\n" * 100)
    bpe.save_pretrained(tmp_path / "tokenizer")
    for path in (tmp_path / "tokenizer", tmp_path / "tokenizer" / "tokenizer.json"):
        corpus = load_corpus(text, tokenizer=path)
        assert corpus.tokenizer.backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()
        assert corpus.train.tokens[0] == bpe.eos_token_id
        assert np.count_nonzero(corpus.train.tokens == bpe.eos_token_id) == 1
        assert bpe.decode(corpus.train.tokens[1:].tolist()) == "the cat sat <|end|> on the mat.\n" * 90


def test_a_run_folder_gives_its_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bpe.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "seqmix", "eos_token_id": 5}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|end|>", "<|pad|>")
    assert tokenizer.backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()
    assert not caplog.records


def test_the_tokens_of_a_settings_file_are_kept(tmp_path: Path) -> None:
    rules = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    for token, name in zip(rules["added_tokens"], ("</doc>", "<fill>"), strict=True):
        token["content"] = name
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</doc>"}, "pad_token": null}')
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<fill>", "tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 256, 257)


def test_cuts_and_padding_of_a_tokenizer_file_do_not_touch_the_text(tmp_path: Path) -> None:
    backend = byte_tokenizer().backend_tokenizer
    backend.enable_truncation(8)
    backend.enable_padding(length=100)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "words.txt").write_text("one two three\n" * 20)
    corpus = load_corpus(tmp_path / "words.txt", tokenizer=tmp_path / "tokenizer.json")
    assert len(corpus.train) + len(corpus.valid) == 2 + 20 * 14


def test_a_tokenizer_without_an_end_token_gets_one(tmp_path: Path) -> None:
    rules = json.loads(bpe.backend_tokenizer.to_str())
    rules["added_tokens"] = []
    rules["model"]["vocab"] = {
        token: index for index, token in enumerate(t for t in rules["model"]["vocab"] if not t.startswith("<|"))
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|end|>"
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == len(rules["model"]["vocab"])


def test_a_tokenizer_that_loses_text_is_reported(tmp_path: Path) -> None:
    rules = json.loads(bpe.backend_tokenizer.to_str())
    rules["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "text.txt").write_text("Loud WORDS\n" * 20)
    corpus = load_corpus(tmp_path / "text.txt", tokenizer=tmp_path / "tokenizer.json")
    assert any("changes the text" in note for note in corpus.notes)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("bpe:100", "the tokenizer 'bpe:100' has no usable size: write bpe:N with N at least 258"),
        ("bpe:", "no usable size"),
        ("bpe", "no usable size"),
        ("bpe:-5", "no usable size"),
        ("bpe:4k", "no usable size"),
        ("byte", "there is no tokenizer at byte: write bytes, bpe:SIZE, or the path of a tokenizer.json"),
    ],
)
def test_unknown_tokenizers_are_refused(spec: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words\n" * 9)
    with pytest.raises(InputError, match=message):
        load_corpus(tmp_path / "text.txt", tokenizer=spec)


def test_a_broken_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a readable tokenizer"):
        load_tokenizer(tmp_path)


def test_text_that_is_not_utf8_needs_the_byte_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"plain words\n" * 200 + b"caf\xe9\n" + b"plain words\n" * 200)
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 text at byte 2403: .* --tokenizer bytes"):
        load_corpus(path, tokenizer="bpe:260")
    corpus = load_corpus(path)
    both = np.concatenate([corpus.train.tokens[1:], corpus.valid.tokens[1:]])
    assert both.astype(np.uint8).tobytes() == path.read_bytes()


def test_long_text_is_encoded_in_pieces_as_it_is_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmix.data.documents._PIECE_BYTES", 2000)
    monkeypatch.setattr("seqmix.data.documents._CUT_SEARCH_BYTES", 300)
    words = ["the cat  sat", "on 12 mats.\n\n", " naïve 日本語", "don't\t\tsay\u00a0so ,"]
    text = " ".join(words[i * 7 % 4] for i in range(5000))
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "held_out.txt").write_text("other words\n")
    corpus = load_corpus(path, valid=tmp_path / "held_out.txt", tokenizer="bpe:300")
    (whole,) = TextEncoder(corpus.tokenizer).encode([text])
    assert np.array_equal(corpus.train.tokens[1:], whole)
