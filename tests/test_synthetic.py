"""Synthetic tasks: every answer is found again by a solver that shares nothing with the generator."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from seqmix.cli.main import main
from seqmix.cli.output import progress
from seqmix.compare.report.page import render_report
from seqmix.compare.run import run_comparison
from seqmix.compare.settings import CompareSettings
from seqmix.compare.terminal import print_results
from seqmix.data import IGNORED, TASKS, ExampleStore, Task, load_corpus, open_stream, parse_task
from seqmix.data.synthetic import ExampleStream, open_task
from seqmix.data.synthetic.mqar import MQAR
from seqmix.errors import InputError
from seqmix.evaluation import evaluate
from seqmix.models import create_model
from seqmix.training import TrainSettings, read_metrics, train

Row = list[str]
Answers = dict[int, str]
"""The words that a row asks for, by position."""


def words_and_answers(task: Task, seed: int = 0, rows: int = 8) -> list[tuple[Row, Answers]]:
    """Rows of a task in words, straight from its generator."""
    found = task.draw(np.random.default_rng(seed), rows)
    assert found.tokens.shape == found.targets.shape == (rows, task.length)
    assert found.tokens.min() >= 0
    assert found.tokens.max() < len(task.words)
    assert len(set(task.words)) == len(task.words)
    assert not any(any(letter.isspace() for letter in word) for word in task.words)
    return [
        (
            [task.words[token] for token in tokens],
            {place: task.words[target] for place, target in enumerate(targets) if target != IGNORED},
        )
        for tokens, targets in zip(found.tokens, found.targets, strict=True)
    ]


def solve_mqar(row: Row) -> Answers:
    """The value behind the first place of each key that is there twice."""
    return {
        place: row[row.index(word) + 1]
        for place, word in enumerate(row)
        if word.startswith("k") and row.index(word) < place
    }


def solve_copying(row: Row) -> Answers:
    read = [word for word in row[: row.index("<copy>")] if word != "_"]
    return dict(enumerate(read, start=len(row) - len(read)))


def solve_induction(row: Row) -> Answers:
    first = row.index("<trigger>")
    assert row.count("<trigger>") == 2
    return {len(row) - 1: row[first + 1]}


def solve_recall(row: Row) -> Answers:
    seen: dict[str, str] = {}
    answers = {}
    for place in range(0, len(row), 2):
        key, value = row[place], row[place + 1]
        if key in seen:
            answers[place] = seen[key]
        assert seen.setdefault(key, value) == value
    return answers


def solve_parity(row: Row) -> Answers:
    assert row[-1] == "?"
    return {len(row) - 1: ("even", "odd")[row.count("1") % 2]}


def solve_majority(row: Row) -> Answers:
    return {len(row) - 1: max(("0", "1"), key=row.count)}


def solve_agreement(row: Row) -> Answers:
    """The number of the first noun of each sentence, told by its ending, at the word before the verb."""
    answers: Answers = {}
    begin = 0
    for place, word in enumerate(row):
        if word == ".":
            subject = row[begin + 1]
            answers[place - 2] = "are" if subject.endswith("s") else "is"
            begin = place + 1
    assert set(row[begin:]) <= {"<|pad|>"}
    return answers


def solve_listops(row: Row) -> Answers:
    """A stack machine: a bracket opens a list, `]` replaces it by its value."""
    asks = row.index("=")
    stack: list[list[Any]] = [[]]
    for word in row[:asks]:
        if word.startswith("["):
            stack.append([word])
        elif word == "]":
            name, *values = stack.pop()
            ordered = sorted(values)
            middle = len(ordered) // 2
            median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
            value = {"[MIN": ordered[0], "[MAX": ordered[-1], "[MED": int(median), "[SM": sum(values) % 10}[name]
            assert 2 <= len(values) <= 10
            stack[-1].append(value)
        else:
            stack[-1].append(int(word))
    ((value,),) = stack
    assert set(row[asks + 1 :]) <= {"<|pad|>"}
    return {asks: str(value)}


memory = st.fixed_dictionaries(
    {"length": st.integers(20, 60), "symbols": st.integers(1, 10), "vocab": st.integers(1, 9)}
)
even = st.integers(8, 40).map(lambda half: 2 * half)
SOLVERS: dict[str, tuple[Callable[[Row], Answers], st.SearchStrategy[dict[str, Any]]]] = {
    "mqar": (
        solve_mqar,
        st.fixed_dictionaries(
            {
                "length": even,
                "pairs": st.integers(1, 4),
                "vocab": st.integers(10, 300),
                "power": st.sampled_from([0.01, 0.5, 1.0]),
            }
        ),
    ),
    "copying": (
        solve_copying,
        memory,
    ),
    "selective_copying": (
        solve_copying,
        memory,
    ),
    "induction_heads": (
        solve_induction,
        st.fixed_dictionaries({"length": st.integers(3, 60), "vocab": st.integers(1, 20)}),
    ),
    "in_context_recall": (
        solve_recall,
        st.fixed_dictionaries({"length": even, "vocab": st.sampled_from([2, 8, 16])}),
    ),
    "parity": (solve_parity, st.fixed_dictionaries({"length": st.integers(2, 80)})),
    "majority": (solve_majority, st.fixed_dictionaries({"length": even})),
    "agreement": (
        solve_agreement,
        st.fixed_dictionaries(
            {"length": st.integers(70, 90), "nearest": st.integers(1, 9), "furthest": st.integers(9, 64),
             "phrases": st.sampled_from([0.0, 0.5, 1.0])}
        ),
    ),
    "listops": (
        solve_listops,
        st.fixed_dictionaries({"length": st.integers(60, 200), "shortest": st.integers(1, 40)}),
    ),
}  # fmt: skip


def test_every_task_has_a_solver() -> None:
    assert set(SOLVERS) == set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_labels_are_what_a_solver_finds(name: str, data: st.DataObject) -> None:
    solver, options = SOLVERS[name]
    task = TASKS[name](**data.draw(options))
    for row, answers in words_and_answers(task, data.draw(st.integers(0, 1000))):
        assert answers
        assert answers == solver(row)


@settings(deadline=None, max_examples=40)
@given(half=st.integers(2, 60), pairs=st.integers(1, 30), seed=st.integers(0, 1000))
def test_mqar_is_the_papers(half: int, pairs: int, seed: int) -> None:
    pairs = min(pairs, half // 2)
    task = MQAR(length=2 * half, pairs=pairs, vocab=128)
    for row, answers in words_and_answers(task, seed):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert {word[0] for word in keys} == {"k"}
        assert {word[0] for word in values} == {"v"}
        assert len(set(keys)) == len(set(values)) == pairs
        # Each key is asked for once, at an even place behind the pairs, and no filler is one.
        assert sorted(row[place] for place in answers) == sorted(keys)
        assert all(place >= 2 * pairs and place % 2 == 0 for place in answers)
        assert sum(word.startswith("k") for word in row) == 2 * pairs


def test_the_originals_fillers_collide_with_keys() -> None:
    """92 % of the rows at (512, 64) hold a key that is there more than twice; ours never do."""

    def collided(fillers: str) -> float:
        task = MQAR(length=512, pairs=64, fillers=fillers)
        rows = task.draw(np.random.default_rng(0), 1000).tokens
        return float(np.mean([any((row == key).sum() > 2 for key in row[0:128:2]) for row in rows]))

    # Fillers stand at 512 - 3 * 64 places, and each is one of the 64 keys out of 8192 words.
    expected = 1 - (1 - 64 / 8192) ** 320
    assert abs(collided("any") - expected) < 4 * (expected * (1 - expected) / 1000) ** 0.5
    assert collided("values") == 0


def test_near_queries_are_preferred_as_the_power_law_says() -> None:
    """The first query of a row falls on gap i with probability i^(a - 1) over their sum."""
    task = MQAR(length=40, pairs=1, vocab=64, power=0.3)
    found = task.draw(np.random.default_rng(1), 20_000)
    gaps = (np.argmax(found.targets != IGNORED, axis=1) - 2) // 2
    rates = np.arange(1, 20) ** (0.3 - 1)
    expected = rates / rates.sum()
    error = np.sqrt(expected * (1 - expected) / 20_000)
    assert (abs(np.bincount(gaps, minlength=19) / 20_000 - expected) < 5 * error).all()


def test_listops_has_the_arenas_lengths_and_depth() -> None:
    task = TASKS["listops"]()
    deepest = 0
    for row, _ in words_and_answers(task, rows=16):
        expression = row[: row.index("=")]
        assert 500 < len(expression) < 2000
        depths = np.cumsum([word.startswith("[") for word in expression]) - np.cumsum([w == "]" for w in expression])
        assert depths[-1] == 0
        assert depths[:-1].min() > 0
        deepest = max(deepest, int(depths.max()))
    # A digit at depth 10 stands within nine operations.
    assert deepest == 9


def test_agreement_asks_at_every_distance() -> None:
    task = parse_task("agreement:furthest=20,length=100")
    found = task.draw(np.random.default_rng(0), 200)
    assert found.distances is not None
    asked = found.targets != IGNORED
    assert set(found.distances[asked].tolist()) == set(range(1, 21))
    assert not found.distances[~asked].any()
    for tokens, row in zip(found.tokens, found.distances, strict=True):
        for place in np.flatnonzero(row):
            # The subject stands `distance` words before the verb, behind its article, which begins the sentence.
            subject = place + 1 - row[place]
            assert task.words[tokens[subject - 1]] == "the"
            assert subject == 1 or task.words[tokens[subject - 2]] == "."


def small(name: str, **more: Any) -> Task:
    """A task of few tokens a row and few rows."""
    sizes: dict[str, dict[str, Any]] = {
        "agreement": {"length": 40, "furthest": 20},
        "copying": {"length": 30},
        "in_context_recall": {"length": 40},
        "induction_heads": {"length": 40},
        "listops": {"length": 60, "shortest": 20},
        "mqar": {"length": 32},
        "selective_copying": {"length": 40},
    }
    return TASKS[name](**{"valid": 200, **sizes.get(name, {}), **more})


@pytest.mark.parametrize("name", sorted(TASKS))
def test_parts_are_disjoint_and_depend_on_the_seed_alone(name: str) -> None:
    train, valid = open_task(small(name, examples=300))
    open_task.cache_clear()
    again = open_task(small(name, examples=300))
    other = open_task(small(name, examples=300, seed=1))
    rows = np.arange(200)
    kept = {row.tobytes() for row in valid.read(rows).tokens}
    assert not kept & {row.tobytes() for row in train.read(np.arange(300)).tokens}
    for mine, same in ((train, again[0]), (valid, again[1])):
        # In another order, and with others around them, the rows are the same.
        shuffled = np.random.default_rng(0).permutation(200)
        np.testing.assert_array_equal(same.read(shuffled).tokens, mine.read(rows).tokens[shuffled])
        np.testing.assert_array_equal(same.read(shuffled).targets, mine.read(rows).targets[shuffled])
    assert (other[1].read(rows).tokens != valid.read(rows).tokens).any()


def test_rows_that_repeat_held_out_ones_are_drawn_again() -> None:
    """Of 2^7 rows of parity 100 are held out, so most that are drawn for training have to be drawn again."""
    train, valid = open_task(parse_task("parity:length=8,valid=60,examples=500"))
    kept = {row.tobytes() for row in valid.read(np.arange(60)).tokens}
    assert len(kept) > 40
    found = train.read(np.arange(500))
    assert not kept & {row.tobytes() for row in found.tokens}
    bits = (found.tokens[:, :-1] == 2).sum(axis=1) % 2
    np.testing.assert_array_equal(found.targets[:, -1], 4 + bits)


def test_a_bounded_part_is_read_in_a_new_order_each_epoch() -> None:
    stream = ExampleStream(open_task(small("mqar", examples=50))[0], seed=3)
    epochs = [stream.rows(50 * epoch, 50).input_ids for epoch in range(3)]
    as_sets = [{tuple(row) for row in epoch.tolist()} for epoch in epochs]
    assert as_sets[0] == as_sets[1] == as_sets[2]
    assert len(as_sets[0]) == 50
    assert not torch.equal(epochs[0], epochs[1])
    # Any cut into batches reads the same rows.
    pieces = [stream.rows(first, 7) for first in range(0, 105, 7)]
    assert torch.equal(torch.cat([piece.input_ids for piece in pieces]), torch.cat(epochs)[:105])
    assert stream.epoch_of(49) == 0
    assert stream.epoch_of(50) == 1


def test_an_endless_part_never_repeats_and_each_seed_has_its_own() -> None:
    store = open_task(small("mqar"))[0]
    first, second = (ExampleStream(store, seed).rows(0, 600).input_ids for seed in (0, 1))
    rows = {tuple(row) for row in torch.cat([first, second]).tolist()}
    assert len(rows) == 1200
    assert torch.equal(ExampleStream(store, 1).rows(100, 5).input_ids, second[100:105])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mqr", "did you mean 'mqar'"),
        ("mqr:length=64", "did you mean 'mqar'"),
        ("mqar:lenght=64", "unknown option of mqar 'lenght': did you mean 'length'?"),
        ("mqar:length", "'length' has no value: write mqar:key=value"),
        ("mqar:length=1e3", "length is '1e3', and it must be a whole number"),
        ("mqar:power=much", "power is 'much', and it must be a number"),
        ("mqar:pairs=4,pairs=5", "pairs is given twice"),
        ("mqar:length=63", "length is 63, and it must be even"),
        ("mqar:pairs=17", "pairs is 17, and 4 tokens for each do not fit into a length of 64"),
        ("mqar:vocab=9", "vocab is 9, and 4 pairs need at least 10 words"),
        ("mqar:power=0", "power is 0.0, and it must be above 0"),
        ("mqar:power=nan", "power is nan, and it must be above 0"),
        ("mqar:fillers=value", "unknown fillers of mqar 'value': did you mean 'values'?"),
        ("mqar:examples=0", "examples is 0, and it must be at least 1"),
        ("mqar:valid=0", "valid is 0, and it must be at least 1"),
        ("mqar:seed=-1", "seed is -1, and it must be at least 0"),
        ("copying:symbols=33", "do not fit into a length of 64"),
        ("selective_copying:symbols=200", "do not fit into a length of 256"),
        ("induction_heads:length=2", "need at least 3"),
        ("in_context_recall:vocab=7", "it must be even"),
        ("in_context_recall:length=2", "at least 4"),
        ("listops:arguments=1", "an operation has at least 2"),
        ("listops:depth=2", "this depth gives at most 12 tokens"),
        ("listops:shortest=1999", "nothing lies between"),
        ("parity:length=1", "need at least 2"),
        ("parity:length=8", "too few different rows to hold 3000 out"),
        ("majority:length=9", "it must be even"),
        ("agreement:furthest=126", "does not fit into a length of 128"),
        ("agreement:nearest=65", "it must not be below nearest"),
        ("agreement:phrases=1.5", "it is a share"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(spec: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_corpus(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_brings_its_own_words_and_held_out_part(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be held out of mqar"):
        load_corpus("mqar", valid="python-stdlib")
    with pytest.raises(InputError, match="does not go with mqar"):
        load_corpus("mqar", tokenizer="bpe:4096")
    corpus = load_corpus("mqar:vocab=40")
    assert corpus.vocab_size == 40
    assert corpus.train_bytes is None
    assert corpus.train_tokens is None
    assert corpus.valid_tokens == 3000 * 64
    assert corpus.valid_targets == 3000 * 4
    text = "k3 v21 <|pad|> k1"
    ids = corpus.tokenizer(text).input_ids
    assert ids == [3, 21, 0, 1]
    assert corpus.tokenizer.decode(ids) == text
    corpus.tokenizer.save_pretrained(tmp_path)
    # A saved tokenizer serves the task at another length, and not one of other words.
    assert load_corpus("mqar:vocab=40,length=128", tokenizer=tmp_path).vocab_size == 40
    with pytest.raises(InputError, match=r"does not have word 20 of 'mqar:vocab=42', 'k20'"):
        load_corpus("mqar:vocab=42", tokenizer=tmp_path)


def test_a_context_of_another_length_is_refused() -> None:
    store = open_task(small("mqar"))[0]
    assert isinstance(store, ExampleStore)
    with pytest.raises(InputError, match=r"the context is 64, and .* has rows of 32 tokens: .* give --context 32"):
        open_stream(store, 64)


def test_fingerprints_tell_tasks_apart() -> None:
    specs = ("mqar", "mqar:length=128", "mqar:seed=1", "mqar:pairs=5", "copying", "selective_copying:length=64")
    found = [load_corpus(spec).fingerprint for spec in specs]
    assert len(set(found)) == len(specs)
    assert load_corpus("mqar:length=64").fingerprint == found[0]
    assert dataclasses.asdict(parse_task(parse_task("mqar:pairs=5").spec())) == dataclasses.asdict(
        parse_task("mqar:pairs=5")
    )
    assert json.dumps(parse_task("agreement").options())


SIZES: dict[str, Any] = {"model": "gated_conv", "params": "10k", "batch_size": 8, "device": "cpu", "threads": 1}


def test_only_answers_are_trained_on_and_scored() -> None:
    """The loss of a batch is the mean over its answers, as float64 logits give it, and so are the accuracies."""
    corpus = load_corpus("agreement:length=24,furthest=8,valid=40")
    model = create_model("gated_conv", vocab_size=corpus.vocab_size, params="10k", context=24).double()
    found = evaluate(model, corpus.valid, context=24, batch_size=7)
    assert isinstance(corpus.valid, ExampleStore)
    rows = corpus.valid.read(np.arange(40))
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(rows.tokens)).logits
    targets = torch.from_numpy(rows.targets)
    asked = targets != IGNORED
    right = logits.argmax(-1) == targets
    torch.testing.assert_close(
        found.loss, torch.nn.functional.cross_entropy(logits[asked], targets[asked]).item(), rtol=1e-12, atol=0
    )
    assert found.answers is not None
    assert found.tokens == asked.sum()
    assert found.accuracy == pytest.approx(right[asked].double().mean().item())
    assert found.answers.example_accuracy == pytest.approx((right | ~asked).all(1).double().mean().item())
    distances = torch.from_numpy(rows.distances)
    expected = {
        distance: right[distances == distance].double().mean().item() for distance in distances[asked].unique().tolist()
    }
    assert found.answers.accuracy_by_distance == pytest.approx(expected)
    assert np.mean(found.answers.error_by_block) == pytest.approx(1 - found.answers.accuracy, abs=0.05)
    assert found.bits_per_byte is found.word_perplexity is found.bytes is found.words is None
    document = json.loads(json.dumps(found.to_dict()))
    assert document["accuracy"] == found.accuracy
    assert set(document["accuracy_by_distance"]) == {str(distance) for distance in expected}


@dataclasses.dataclass
class Half:
    """One of two processes; the second one's sums hold what the first one had."""

    rank: int
    kept: list[torch.Tensor]
    count: int = 2

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.rank == 0:
            self.kept.append(values.clone())
            return values
        return values + self.kept.pop(0)


def test_processes_count_answers_together() -> None:
    corpus = load_corpus("agreement:length=24,furthest=8,valid=40")
    model = create_model("gated_conv", vocab_size=corpus.vocab_size, params="10k", context=24)
    kept: list[torch.Tensor] = []
    for rank in range(2):
        # Seven batches, so that one of the processes repeats one without its answers.
        found = evaluate(model, corpus.valid, context=24, batch_size=6, part=Half(rank, kept))
    alone = evaluate(model, corpus.valid, context=24, batch_size=6)
    assert found.answers == alone.answers
    assert found.tokens == alone.tokens
    assert found.loss == pytest.approx(alone.loss, rel=1e-12)


def test_a_part_of_the_answers_is_spread_over_the_rows() -> None:
    corpus = load_corpus("mqar:length=16,pairs=2,vocab=32,valid=100")
    model = create_model("gated_conv", vocab_size=32, params="10k", context=16)
    assert evaluate(model, corpus.valid, context=16, max_tokens=60).tokens == 60
    assert evaluate(model, corpus.valid, context=16).tokens == 200
    with pytest.raises(InputError, match="give --context 16"):
        evaluate(model, corpus.valid, context=32)


def test_a_solved_task_stops_and_stays_solved(tmp_path: Path) -> None:
    """Any answer right is accuracy enough here: the first evaluation ends the training."""
    data = "majority:length=16,examples=400,valid=50"
    settings = TrainSettings(
        data=data, tokens=40 * 8 * 16, evaluate_every=0.1, stop_at_accuracy=0.02, out=str(tmp_path / "run"), **SIZES
    )
    assert settings.context == 16
    messages: list[str] = []
    result = train(settings, message=messages.append)
    assert result.status == "finished"
    assert result.is_solved
    assert result.steps < 40
    assert result.accuracy is not None
    assert result.accuracy >= 0.02
    assert result.bits_per_byte is result.best_bits_per_byte is None
    assert any(text.startswith("solved at step") for text in messages)
    # Taken up again before the result was written, it has nothing more to train.
    (tmp_path / "run" / "result.json").unlink()
    again = train(settings, resume=True, message=messages.append)
    assert (again.steps, again.accuracy, again.is_solved) == (result.steps, result.accuracy, True)
    found = read_metrics(tmp_path / "run" / "metrics.jsonl", "evaluation")
    assert all("accuracy" in record and record["bits_per_byte"] is None for record in found)


def test_a_run_of_a_task_is_evaluated_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    train(TrainSettings(data="mqar:length=16,pairs=2,vocab=32,valid=40", tokens=500, out=run, **SIZES))
    assert main(["eval", run, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert 0 <= own["accuracy"] <= 1
    assert own["bits_per_byte"] is None
    assert own["tokens"] == 80
    assert json.loads((tmp_path / "run" / "config.json").read_text())["eos_token_id"] == 0
    assert main(["eval", run, "--data", "mqar:length=32,pairs=2,vocab=32,valid=40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 32
    assert main(["eval", run]) == 0
    assert "whole rows right" in capsys.readouterr().out
    for words, told in (
        (["--sliding"], "whose rows are read as a whole"),
        (["--data", "mqar:vocab=34"], "does not have word 16"),
        (["--context", "64"], "give --context 16"),
    ):
        assert main(["eval", run, *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 32}, "leave --context out, or give --context 64"),
        ({"stop_at_accuracy": 1.5}, "stop_at_accuracy is 1.5"),
        ({"stop_at_accuracy": 0.9, "data": "python-stdlib"}, "has no answers to count"),
    ],
)
def test_training_settings_that_do_not_go_with_a_task(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainSettings(**{"data": "mqar", "tokens": 1000, "out": "x", **SIZES, **changes})


def test_a_comparison_speaks_of_accuracy(tmp_path: Path) -> None:
    settings = CompareSettings(
        data="agreement:length=24,furthest=8,valid=40",
        models=("transformer", "gated_conv"),
        params="10k",
        budget="tokens=2k",
        batch_size=8,
        stop_at_accuracy=0.999,
        speed_seconds=0.1,
        threads=1,
        device="cpu",
    )
    with progress("compare") as display:
        results = run_comparison(settings, tmp_path / "out", display)
    assert results["status"] == "finished"
    for contender in results["contenders"]:
        assert contender["status"] == "finished"
        assert contender["bits_per_byte"] is contender["best_bits_per_byte"] is contender["word_perplexity"] is None
        assert contender["accuracy"] is not None
        assert contender["evaluations"] is not None
        assert contender["evaluations"]["accuracy"][-1] == contender["accuracy"]
        assert contender["accuracy_by_distance"]
        assert len(contender["error_by_block"]) == 32
    for entry in results["models"]:
        assert entry["bits_per_byte"] is None
        assert entry["accuracy"] == entry["lowest"] == entry["highest"]
    first = max(results["models"], key=lambda entry: entry["accuracy"] or 0.0)
    assert f"an accuracy of {first['accuracy']:.3f}" in results["verdict"][0]
    assert not any("bits per byte" in sentence for sentence in results["verdict"])
    assert results["corpus"]["train_bytes"] is results["corpus"]["train_tokens"] is None
    screen = Console(width=100, record=True, file=io.StringIO())
    print_results(results, screen)
    text = screen.export_text()
    assert "accuracy" in text
    assert "Accuracy by distance" in text
    assert "4 to 7" in text
    assert "bits/byte" not in text
    page = render_report(results)
    assert "Accuracy by distance" in page
    assert '"measure": "accuracy"' in page
    assert "Bits per byte of held-out text" not in page


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "mqar.py"
    out = tmp_path / "found.json"

    def run(contenders: str) -> dict[str, Any]:
        command = [sys.executable, str(script), "--quick", "--json", "--threads", "1", "--out", str(out)]
        done = subprocess.run(
            [*command, "--contenders", contenders], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run("attention")
    second = run("attention,gated_conv,no_such_mixer")
    assert [one["mixer"] for one in second["runs"]] == ["attention", "gated_conv"]
    assert second["runs"][0] == first["runs"][0]
    assert "no_such_mixer" in second["skipped"]
    assert all(0 <= one["accuracy"] <= 1 and one["seconds"] > 0 for one in second["runs"])
