"""What is inspected: runs and presets, texts and their tokens, the matrices on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqmix.data import byte_tokenizer, train_bpe
from seqmix.errors import InputError
from seqmix.inspection import layer_matrix, mixer_places, mixing_matrices, normalise_rows, open_subject
from seqmix.inspection import matrices as matrices_module
from seqmix.inspection.texts import encode_text, token_labels, with_one_token_changed
from seqmix.mixer import SharingMixer
from seqmix.training import settings_from, train

TINY = "4k"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of a few steps, with the text it was trained on beside it."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("".join(f"line {number} of the text, which says {number * 7}.\n" for number in range(300)))
    values = {
        "data": str(text),
        "model": "gated_conv",
        "options": {"hidden_size": 16, "num_hidden_layers": 2},
        "context": 32,
        "batch_size": 4,
        "tokens": 600,
        "evaluate_tokens": 200,
        "out": str(folder / "out"),
    }
    train(settings_from(values))
    return folder / "out"


class TestTexts:
    @given(text=st.text(min_size=1, max_size=40))
    def test_labels_of_bytes_are_the_text(self, text: str) -> None:
        tokenizer = byte_tokenizer()
        encoded = encode_text(tokenizer, text, "the text", 1000)
        assert encoded.tokens[0] == "<|end|>"
        assert len(encoded.tokens) == encoded.input_ids.shape[1] == 1 + len(text.encode())
        shown = "".join(encoded.tokens[1:])
        assert shown == "".join(
            letter if ord(letter) < 128 else "".join(f"\\x{byte:02x}" for byte in letter.encode()) for letter in text
        )

    def test_labels_of_a_bpe_are_its_pieces(self) -> None:
        text = "the cat and the dog and the bird, déjà vu"
        tokenizer = train_bpe([text] * 20, 300)
        encoded = encode_text(tokenizer, text, "the text", 1000)
        # Pieces of a character that two bytes make stand as bytes; all others are as they are read.
        assert "".join(encoded.tokens[1:]).replace("\\xc3\\xa9", "é").replace("\\xc3\\xa0", "à") == text

    def test_a_long_text_is_cut_and_says_so(self) -> None:
        encoded = encode_text(byte_tokenizer(), "x" * 50, "the text", 10)
        assert (len(encoded.tokens), encoded.cut_from) == (10, 51)
        assert encode_text(byte_tokenizer(), "x" * 9, "the text", 10).cut_from is None

    @pytest.mark.parametrize("text", ["a", "aaaa", "abcd efgh"])
    def test_one_token_is_another(self, text: str) -> None:
        encoded = encode_text(byte_tokenizer(), text, "the text", 100)
        changed = with_one_token_changed(encoded, byte_tokenizer())
        assert int((changed.input_ids != encoded.input_ids).sum()) == 1
        assert changed.tokens == token_labels(byte_tokenizer(), changed.input_ids[0].tolist())

    def test_an_empty_text_is_refused(self) -> None:
        with pytest.raises(InputError, match="the text is empty: give at least one character"):
            encode_text(byte_tokenizer(), "", "the text", 10)


class TestSubjects:
    def test_a_preset_is_drawn_by_its_seed(self) -> None:
        one, same = (open_subject("gated_conv", params=TINY, texts=["a text"], seed=3) for _ in range(2))
        other = open_subject("gated_conv", params=TINY, texts=["a text"], seed=4)
        assert not one.is_trained
        assert torch.equal(one.model.lm_head.weight, same.model.lm_head.weight)
        assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
        assert [text.name for text in one.texts] == ["the text", "the text, token 2 changed"]

    def test_a_run_reads_what_it_was_held_out_from(self, run: Path) -> None:
        subject = open_subject(str(run), tokens=40)
        assert subject.is_trained
        assert subject.held_out is not None
        assert subject.texts[0].tokens[0] == "<|end|>"
        assert len(subject.texts[0].tokens) == 40
        assert "line" in "".join(subject.texts[0].tokens)
        assert subject.notes == []

    def test_a_run_whose_data_is_gone_reads_a_sample(self, run: Path, tmp_path: Path) -> None:
        moved = tmp_path / "moved"
        moved.mkdir()
        for file in run.iterdir():
            if file.is_file():
                content = file.read_bytes()
                (moved / file.name).write_bytes(content.replace(b"text.txt", b"gone.txt"))
        subject = open_subject(str(moved), tokens=40)
        assert subject.held_out is None
        assert "A convolution" in "".join(subject.texts[0].tokens)
        assert len(subject.notes) == 1
        assert "gone.txt" in subject.notes[0]

    def test_a_task_is_read_in_its_own_words(self) -> None:
        subject = open_subject("transformer", params=TINY, data="copying:length=24,symbols=4")
        assert len(subject.texts) == 2
        assert subject.texts[0].tokens.count("<copy>") == 1
        assert len(subject.texts[0].tokens) == 24

    def test_another_model_reads_the_same(self, run: Path) -> None:
        subject = open_subject(str(run), tokens=30)
        other = open_subject("transformer", params=TINY, tokens=30, like=subject)
        assert other.texts is not subject.texts
        assert [text.tokens for text in other.texts] == [text.tokens for text in subject.texts]
        assert other.model.config.vocab_size == len(subject.tokenizer)

    def test_two_of_the_same_name_are_told_apart(self, run: Path) -> None:
        subject = open_subject(str(run), tokens=30)
        assert subject.name == "out"
        assert open_subject(str(run), tokens=30, like=subject).name == f"{run.parent.name}/out"
        preset = open_subject("gated_conv", params=TINY, tokens=30)
        assert open_subject("gated_conv", params=TINY, seed=1, tokens=30, like=preset).name == "gated_conv, again"

    @pytest.mark.parametrize(
        ("name", "options", "sentence"),
        [
            ("runs/nothing_here", {}, "there is no run in 'runs/nothing_here'"),
            ("transfomer", {}, "did you mean 'transformer'"),
            ("hf:gpt2", {"tokens": 16}, "a model of Hugging Face, which has no mixing matrices"),
            ("gated_conv", {"tokens": 1}, "tokens is 1: at least 2"),
            ("gated_conv", {"texts": [""]}, "the text is empty"),
            ("gated_conv", {"data": "no/such/file.txt"}, "no/such/file.txt"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, name: str, options: dict, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            open_subject(name, params=TINY, **options)

    def test_a_size_for_a_run_is_refused(self, run: Path) -> None:
        with pytest.raises(InputError, match="has its size: leave --params out"):
            open_subject(str(run), params="1M")


MODELS = ["gated_conv", "transformer", "mamba2", "rwkv7", "mixer:lstm", "convtransformer", "hyena"]


@pytest.mark.parametrize("name", MODELS)
def test_the_matrices_are_what_forward_does(name: str) -> None:
    """readout(M · values), with the matrices that are shown, is what each mixer of the model gives in its forward."""
    subject = open_subject(name, params="20k", texts=["who listens to whom"])
    model, ids = subject.model, subject.texts[0].input_ids
    places = mixer_places(model, ids)
    found = list(mixing_matrices(model, ids))
    assert [(one.layer, one.slot, one.name) for one in found] == [(one.layer, one.slot, one.name) for one in places]
    assert len(places) == len(model.mixers)
    for place, one in zip(places, found, strict=True):
        assert one.matrix.dtype == np.float32
        assert one.matrix.shape[1:] == (ids.shape[1],) * 2
        if one.jacobian:
            continue
        first, mixed = 0, []
        for part in place.mixing():
            assert part.values is not None
            heads = torch.from_numpy(one.matrix[first : first + part.matrix.shape[1]])[None]
            mixed.append(heads @ part.values)
            first += part.matrix.shape[1]
        assert first == len(one.matrix)
        with torch.no_grad():
            if isinstance(place.mixer, SharingMixer):
                y = place.mixer.readout(mixed, place.x, place.shared)
                expected = place.mixer.forward_sharing(place.x, None, place.shared)[0].y
            else:
                y, expected = place.mixer.readout(mixed, place.x), place.mixer(place.x).y
        # Two ways to add the same products up, in float32.
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-7)


def test_what_each_mixer_reads_is_what_the_model_gives_it() -> None:
    subject = open_subject("rwkv7", params="20k", texts=["who listens"])
    model, ids = subject.model, subject.texts[0].input_ids
    given: list[torch.Tensor] = []
    hooks = [
        mixer.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        for mixer in model.mixers
        if not isinstance(mixer, SharingMixer)
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    places = [place for place in mixer_places(model, ids) if not isinstance(place.mixer, SharingMixer)]
    assert [place.slot for place in places] == ["feed_forward"] * len(places)
    assert len(places) == len(given) > 0
    for place, x in zip(places, given, strict=True):
        torch.testing.assert_close(place.x, x)


def test_rows_are_shares() -> None:
    matrix = np.array([[[0.0, 0.0], [-1.0, 3.0]]], np.float32)
    assert normalise_rows(matrix).tolist() == [[[0.0, 0.0], [0.25, 0.75]]]


def test_a_text_that_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = open_subject("gated_conv", params=TINY, texts=["who listens to whom"])
    place = mixer_places(subject.model, subject.texts[0].input_ids)[0]
    monkeypatch.setattr(matrices_module, "available_bytes", lambda device: 10_000)
    with pytest.raises(InputError, match=r"over 20 tokens need .* are free: inspect at most \d+ tokens"):
        layer_matrix(place)
