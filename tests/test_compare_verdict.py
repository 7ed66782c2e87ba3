"""The sentences, the tables and the pictures of a comparison."""

from __future__ import annotations

import base64
import copy
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from compare_sample import sample_results
from rich.console import Console

from seqmix.compare import units
from seqmix.compare.matrix_images import SIDE, matrix_images, picture
from seqmix.compare.results import Results, new_contender
from seqmix.compare.summary import summarize
from seqmix.compare.terminal import print_results
from seqmix.compare.verdict import _negated, verdict
from seqmix.models import create_model


@pytest.fixture
def results() -> Results:
    return copy.deepcopy(sample_results())


def again(results: Results) -> list[str]:
    """The verdict after the contenders have been changed."""
    formula = [crossover for crossover in results["crossovers"] if crossover["source"] == "formula"]
    summarize(results, formula)
    return verdict(results)


def shift(results: Results, model: str, bits: float) -> None:
    for contender in results["contenders"]:
        if contender["model"] == model and contender["bits_per_byte"] is not None:
            contender["bits_per_byte"] += bits
            contender["bits_by_block"] = [block + bits for block in contender["bits_by_block"]]


def test_close_models_are_not_separable(results: Results) -> None:
    first, *rest = again(results)
    assert first.startswith(
        "At equal parameters (300k) and a budget of tokens=600k, convtransformer is best with 2.240"
    )
    assert "gated_conv is 0.006 behind, which is not separable" in first
    assert "It is separable from mamba2, transformer and convsamba." in rest


def test_distant_models_are_separable(results: Results) -> None:
    shift(results, "gated_conv", -0.1)
    first = again(results)[0]
    assert "gated_conv is best" in first
    assert "convtransformer is 0.094 behind (95 % interval 0.083 to 0.105), which is separable" in first


def test_one_seed_is_called_a_hint() -> None:
    sentences = verdict(sample_results(seeds=1))
    assert "(with one seed)" in sentences[0]
    assert "separable" not in sentences[0]
    assert "One seed gives no interval, so this order is a hint: repeat it with --seeds 3." in sentences


def test_failures_are_named(results: Results) -> None:
    assert any(sentence.startswith("mamba2 with seed 1 failed: it was killed") for sentence in again(results))


def test_nothing_finished(results: Results) -> None:
    results["contenders"] = [new_contender(c["model"], c["seed"], c["folder"]) for c in results["contenders"]]
    for contender in results["contenders"]:
        contender["status"], contender["error"] = "failed", "it broke."
    sentences = again(results)
    assert sentences[0] == "No contender finished, so there is nothing to compare."
    assert "convsamba with seed 0 failed: it broke." in sentences


def test_serving_at_both_ends_and_where_the_order_flips(results: Results) -> None:
    shift(results, "transformer", -1)
    sentences = again(results)
    assert any(sentence.startswith("At context 128, gated_conv is the cheapest to serve") for sentence in sentences)
    assert any(sentence.startswith("At context 16,384, gated_conv is the cheapest to serve") for sentence in sentences)
    # 1 / 900 + 0.35 n against 1 / 1150: at n = 714, and between the measured 512 and 1024 the line bends a little.
    assert "convsamba generates a token for less money than transformer from context about 680 on." in sentences
    (state,) = [one for one in sentences if one.startswith("A constant state is smaller than the KV cache of transf")]
    # 16 + 2304 n against 40960 * 8 bytes: first larger at n = 143.
    assert "143 on (mamba2)" in state


def test_what_was_matched_and_what_was_not(results: Results) -> None:
    sentences = again(results)
    assert "Held equal: parameters, with a spread of 1.6 % (asked: within 2 %)." in sentences
    (open_ones,) = [sentence for sentence in sentences if sentence.startswith("Not held equal: ")]
    assert "training time (23.1 s for gated_conv to 66.7 s for mamba2)" in open_ones
    assert "parameters (" not in open_ones
    results["matched"]["spread"] = 0.04
    assert any("more than the 2 % asked for" in sentence for sentence in again(results))


def test_total_money_flips_where_the_arithmetic_says(results: Results) -> None:
    again(results)
    (crossover,) = [one for one in results["crossovers"] if one["quantity"] == "total_money"]
    by_model = {contender["model"]: contender for contender in results["contenders"] if contender["seed"] == 0}

    def total(model: str, tokens: float) -> float:
        contender = by_model[model]
        assert contender["train_money"] is not None
        return contender["train_money"] + tokens * contender["decode_money_per_million_tokens"]["256"] / 1e6

    a, b, at = crossover["a"], crossover["b"], crossover["at"]
    assert total(a, 0.9 * at) < total(b, 0.9 * at)
    assert total(a, 1.1 * at) > total(b, 1.1 * at)


def test_noise_between_two_lines_is_one_crossing(results: Results) -> None:
    for contender in results["contenders"]:
        noisy = {"transformer": (1, 3, 1, 3), "gated_conv": (2, 2, 2, 2)}.get(contender["model"])
        if noisy:
            prices = {"128": noisy[0], "256": noisy[1], "512": noisy[2], "1024": noisy[3]}
            contender["decode_money_per_million_tokens"] = {context: float(price) for context, price in prices.items()}
    again(results)
    (found,) = [
        one
        for one in results["crossovers"]
        if {one["a"], one["b"]} == {"transformer", "gated_conv"}
        and one["quantity"] == "decode_money_per_million_tokens"
    ]
    assert (found["a"], found["b"]) == ("transformer", "gated_conv")
    assert 128 < found["at"] < 1024
    assert "too noisy to tell where" in found["text"]


def test_tables_fit_a_hundred_columns(results: Results) -> None:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=200, color_system=None))
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    text = "\n".join(lines)
    for heading in ("Quality", "Training, one run", "Generated tokens/s by context", "State by context"):
        assert heading in text
    assert "1 (1 failed)" in text


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.0000123, "0.0000123"), (1.5e-12, "1.50e-12"), (999.7, "1.00k"), (20_000, "20.0k"), (3.2e15, "3.20P")],
)
def test_numbers_have_three_digits(value: float, words: str) -> None:
    assert units.number(value) == words


def test_sizes_and_durations() -> None:
    assert [units.size(value) for value in (12, 2048, 3 << 20)] == ["12 B", "2.00 KiB", "3.00 MiB"]
    assert [units.duration(value) for value in (1.5, 180, 7200)] == ["1.50 s", "3.00 min", "2.00 h"]


def decode(png: str) -> tuple[int, int, np.ndarray]:
    """Width, height and the palette indices of a PNG without filters."""
    data = base64.b64decode(png)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert zlib.crc32(kind + body) == checksum
        chunks[kind] = body
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour, len(chunks[b"PLTE"])) == (8, 3, 768)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    return width, height, rows[:, 1:]


def test_a_picture_holds_the_square_root_of_the_share() -> None:
    width, height, pixels = decode(picture(np.array([[0.0, -4.0, 1.0], [0.25, 0.0, 4.0]])))
    assert (width, height) == (3, 2)
    assert pixels.tolist() == [[0, 255, 128], [64, 0, 255]]


def test_each_kind_of_mixer_is_pictured_in_its_first_and_last_layer() -> None:
    model = create_model("convtransformer", vocab_size=258, hidden_size=32, num_hidden_layers=4, context=128).eval()
    images = matrix_images(model, torch.randint(0, 256, (1, SIDE)))
    names = [model.config.mixer_of_layer(layer)["name"] for layer in range(4)]
    assert {(image["layer"], image["mixer"]) for image in images} == {
        (place, name) for name in set(names) for place in (names.index(name), 3 - names[::-1].index(name))
    }
    for image in images:
        width, height, pixels = decode(image["png"])
        assert (width, height) == (SIDE, SIDE)
        # Causal: nothing above the diagonal.
        assert not np.triu(pixels, 1).any()
        assert pixels.max() == 255


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.000"), (1e-5, "0.000"), (-1e-5, "0.000"), (0.0126, "-0.013")])
def test_nothing_has_no_sign(value: float, shown: str) -> None:
    assert _negated(value) == shown
