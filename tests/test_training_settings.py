"""Settings: what each field accepts, where values come from, and which one wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seqmix.errors import InputError
from seqmix.training import TrainSettings, gather_values, settings_from
from seqmix.training.settings import first_difference

BASE: dict[str, Any] = {"data": "text", "model": "gated_conv", "out": "run", "tokens": 1000}


def test_defaults_need_only_data_model_out_and_budget() -> None:
    settings = settings_from(BASE)
    assert (settings.batch_size, settings.context, settings.tokens_per_step) == (16, 256, 4096)
    assert settings == TrainSettings(**BASE)


def test_values_survive_json() -> None:
    settings = settings_from({**BASE, "betas": [0.8, 0.9], "options": {"norm": "layer"}})
    assert settings_from(json.loads(json.dumps(settings.to_dict()))) == settings


def test_sizes_and_numbers_are_read_as_people_write_them() -> None:
    settings = settings_from({**BASE, "tokens": "2M", "params": "300k", "learning_rate": "3e-4", "out": Path("a/b")})
    assert (settings.tokens, settings.params, settings.learning_rate, settings.out) == (2_000_000, 300_000, 3e-4, "a/b")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokens": -5}, "tokens is -5"),
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": None, "seconds": -1.0}, "seconds is -1.0"),
        ({"tokens": None, "seconds": float("nan")}, "seconds is nan"),
        ({"tokens": None}, "--tokens and --seconds"),
        ({"seconds": 5}, "--tokens and --seconds"),
        ({"batch_size": "many"}, "batch_size is 'many': it must be a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 4, "accumulate": 3}, "accumulate=3"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': it must be a number"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"precision": "bfloat"}, "did you mean 'bfloat16'"),
        ({"compile": "yes"}, "compile is 'yes': it must be true or false"),
        ({"betas": [0.9]}, "a pair of numbers"),
        ({"betas": [0.9, 1.0]}, "betas are"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"options": [1]}, "it must be a mapping"),
        ({"model": 7}, "model is 7: it must be text"),
        ({"model": None}, "model is missing: give --model"),
        ({"seed": -1}, "seed is -1"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_bad_values_name_the_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_from({**BASE, **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_command_line_over_set_over_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: lstm\nbatch_size: 2\ncontext: 8\nseed: 1\noptions: {norm: rms, tie_word_embeddings: true}\n"
    )
    values = gather_values(file, ["batch_size=4", "context=16", "options.norm=layer", "clip=null"], {"batch_size": 6})
    assert values == {
        "model": "lstm",
        "batch_size": 6,
        "context": 16,
        "seed": 1,
        "clip": None,
        "options": {"norm": "layer", "tie_word_embeddings": True},
    }


def test_a_later_budget_replaces_an_earlier_one_of_the_other_kind(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tokens: 5M\n")
    assert gather_values(file, [], {"seconds": 3.0}) == {"seconds": 3.0}
    assert gather_values(None, ["seconds=3"], {"tokens": "1k"}) == {"tokens": "1k"}


@pytest.mark.parametrize(
    "content, words",
    [("a: [", "not valid YAML"), ("- 1\n", "lines of `key: value`"), ("options: 3\n", "options is 3")],
)
def test_a_bad_settings_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        gather_values(file, [], {})
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_settings_file_and_bad_assignments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        gather_values(tmp_path / "absent.yaml", [], {})
    with pytest.raises(InputError, match="write --set key=value"):
        gather_values(None, ["seed"], {})
    with pytest.raises(InputError, match="put it in quotes"):
        gather_values(None, ["model=[a"], {})


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="not valid YAML"):
        gather_values(file, [], {})


def test_first_difference_passes_over_what_changes_no_number() -> None:
    settings = settings_from(BASE)
    stored = {**settings.to_dict(), "out": "elsewhere", "checkpoint_every_seconds": 5.0}
    assert first_difference(stored, settings) is None
    assert first_difference({**stored, "seed": 3, "threads": 9}, settings) == ("seed", 3, 0)
