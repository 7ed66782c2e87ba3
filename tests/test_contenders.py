"""What models are called, and what comes of each name: presets, stacks of one mixer, models of Hugging Face."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from seqmix import mixers
from seqmix.compare.opening import file_name
from seqmix.compare.plan import PlanSettings, make_plan
from seqmix.compare.prices import prices
from seqmix.compare.run import run_comparison
from seqmix.compare.settings import CompareSettings, parse_options
from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers.user_code import import_all, import_place
from seqmix.models import SeqmixConfig, create_model, solve
from seqmix.models.contenders import (
    config_of_document,
    config_of_shape,
    contender,
    document_of,
    make_model,
    shape_of,
    split_names,
)
from seqmix.models.huggingface import HuggingFaceFamily, HuggingFaceModel
from seqmix.models.huggingface import costs as counting
from seqmix.models.huggingface.costs import counts_of, hollow, nbytes, run
from seqmix.models.loading import load_model, open_model
from seqmix.models.sizing import measure_config
from seqmix.training import TrainResult, settings_from, train
from seqmix.training.optimizer import decay_groups

OWN_MIXER = Path(__file__).parent.parent / "examples" / "own_mixer.py"
KINDS = ("mistral", "gemma2", "gpt2", "mamba")
SIZES: dict[str, Any] = {"vocab_size": 258, "context": 32}


def family(kind: str) -> HuggingFaceFamily:
    return HuggingFaceFamily.of(kind, f"hf:{kind}")


def tiny(kind: str, *, depth: int = 2, context: int = 64, **options: Any) -> PreTrainedConfig:
    """A small config, with a window that lengths in these tests go beyond where the type has one."""
    chosen = family(kind)
    if "sliding_window" in chosen.known:
        options = {"sliding_window": 24, **options}
    return chosen.config(vocab_size=40, context=context, width=32, depth=depth, **options)


def tiny_model(kind: str, **options: Any) -> HuggingFaceModel:
    model = HuggingFaceModel(tiny(kind, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def own_mixer() -> Iterator[None]:
    """The example's mixer, known for the length of a test."""
    known = dict(mixers._registered)
    mixers._registered["moving_average"] = import_place(str(OWN_MIXER)).MovingAverage
    yield
    mixers._registered.clear()
    mixers._registered.update(known)


# Names.


def test_options_stand_behind_colons_and_values_are_yaml() -> None:
    chosen = contender("transformer:norm=layer:tie_word_embeddings=false:rope_theta=5.5")
    assert chosen.options == {"norm": "layer", "tie_word_embeddings": False, "rope_theta": 5.5}
    assert chosen.name == "transformer:norm=layer:tie_word_embeddings=false:rope_theta=5.5"
    config = solve(chosen.name, "20k", **SIZES)
    assert isinstance(config, SeqmixConfig)
    assert (config.norm, config.tie_word_embeddings, config.rope_theta) == ("layer", False, 5.5)


def test_names_are_split_at_commas_outside_of_brackets() -> None:
    text = "transformer, conv:kernel=[1,2] ,hf:gpt2,, mixer:parallel:mixers=[{name: pool}, {name: lstm}]"
    expected = ("transformer", "conv:kernel=[1,2]", "hf:gpt2", "mixer:parallel:mixers=[{name: pool}, {name: lstm}]")
    assert split_names(text) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["norm_eps", "rope_theta", "initializer_range"]), st.floats(0.1, 9.0)), max_size=4
    )
)
def test_a_name_with_options_is_read_back(pairs: list[tuple[str, float]]) -> None:
    name = "transformer" + "".join(f":{key}={value!r}" for key, value in pairs)
    chosen = contender(name)
    assert (chosen.name, chosen.options) == (name, dict(pairs))
    assert split_names(f"{name},conv") == (name, "conv")


def test_a_path_with_colons_and_dots_is_a_path(tmp_path: Path) -> None:
    place = tmp_path / "a:b=c.d"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3, "n_embd": 24, "n_head": 2}))
    chosen = contender(f"hf:{place}:resid_pdrop=0.0:as_is")
    assert chosen.as_is
    config = solve(chosen.name, "1M", **SIZES)
    assert (config.num_hidden_layers, config.hidden_size, config.resid_pdrop) == (3, 24, 0.0)


def test_options_by_model_know_names_with_dots() -> None:
    names = ("hf:a.json", "hf:a.json:resid_pdrop=0.5", "conv")
    given = ["hf:a.json.n_head=2", "hf:a.json:resid_pdrop=0.5.n_head=4", "conv.norm=layer"]
    assert parse_options(given, names) == {names[0]: {"n_head": 2}, names[1]: {"n_head": 4}, "conv": {"norm": "layer"}}
    with pytest.raises(InputError, match=r"write MODEL\.KEY=VALUE"):
        parse_options(["conv=3"], names)


def test_files_of_contenders_have_names_of_their_own() -> None:
    names = ["transformer:norm=layer", "hf:/a/b.json", "hf:/a b.json", "conv"]
    found = [file_name(name, names) for name in names]
    assert found == ["transformer-norm=layer", "hf-a-b.json-1", "hf-a-b.json-2", "conv"]


REFUSED = {
    "transfomer": "did you mean 'transformer'",
    "transformer:positon=rope": "unknown option of model 'transformer:positon=rope' 'positon': did you mean 'position'",
    "pool": "did you mean 'mixer:pool', a stack of that mixer",
    "transformer:as_is": "only a model of Hugging Face has a size of its own",
    "transformer:norm=[": "is not valid YAML",
    "mixer:nope": "needs --import FILE.py, which registers it",
    "mixer:attention:widow=3": "unknown option .* 'widow': did you mean 'window'",
    "mixer:linformer": "'linformer' is not causal, choose a causal one",
    "mixer:conv:causal=false": "is not causal, choose a causal one",
    "hf:gtp2": "is no folder, no file and no model type of transformers: did you mean 'hf:gpt2'",
    "hf:./nowhere/config.json": "give a folder with config.json, a config's .json, or a type such as hf:gpt2",
    "hf:t5": "no causal language model of type 't5'",
    "hf:bart": "'bart' is an encoder-decoder",
    "hf:bert": "it is not causal, choose a decoder, or set is_decoder=true",
    "hf:gemma3": "has no hidden_size, give that of a plain language model, such as hf:gemma3_text",
    "hf:mistral:windw=3": "unknown option of hf:mistral 'windw'",
    "hf:mistral:hidden_size=wide": "transformers says .*change its config or its options",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_take_part_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]) as caught:
        contender(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no config.json"),
        ("{", "is not readable JSON"),
        ('{"hidden_size": 3}', "names no model_type"),
        ("[1]", "names no model_type"),
        ('{"model_type": "gpt22"}', "unknown model_type in .*did you mean 'gpt2'"),
    ],
)
def test_a_folder_without_a_config_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=words):
        contender(f"hf:{tmp_path}")


def test_code_and_weights_that_a_config_names_are_left_alone(tmp_path: Path) -> None:
    document = {
        "model_type": "gpt2",
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "quantization_config": {"quant_method": "bitsandbytes"},
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    model = create_model(f"hf:{tmp_path}:as_is", vocab_size=40, context=32)
    assert "auto_map" not in model.config.to_diff_dict()
    assert "quantization_config" not in model.config.to_diff_dict()


# Stacks of one mixer.


def test_a_stack_of_one_mixer_has_its_options_and_the_usual_heads() -> None:
    config = solve("mixer:attention:window=8:norm_eps=0.001", "300k", **SIZES)
    assert isinstance(config, SeqmixConfig)
    entry = config.mixer_of_layer(0)
    assert (entry["name"], entry["window"], config.norm_eps, config.norm) == ("attention", 8, 0.001, "rms")
    assert config.hidden_size // entry["heads"] <= 40
    assert measure_config(config, "params") == pytest.approx(300_000, rel=0.02)


def test_a_mixer_of_a_length_is_made_for_the_context() -> None:
    config = solve("mixer:global_conv", "100k", vocab_size=258, context=96)
    assert isinstance(config, SeqmixConfig)
    assert config.mixer_of_layer(0)["length"] == 96


@pytest.mark.parametrize("name", ["mamba2", "lstm", "gated_conv", "pool"])
def test_a_stack_comes_within_its_size(name: str) -> None:
    for measure, goal in (("params", 300_000), ("flops", 900_000)):
        config = solve(f"mixer:{name}", goal, measure=measure, vocab_size=258, context=64)  # type: ignore[arg-type]
        assert measure_config(config, measure) == pytest.approx(goal, rel=0.02)  # type: ignore[arg-type]


def test_a_mixer_that_needs_memory_to_be_made_is_told_so(tmp_path: Path, own_mixer: None) -> None:
    text = "import torch\nfrom own_mixer import MovingAverage\nfrom seqmix.mixers import register_mixer\n"
    text += "\n\n@register_mixer('reads_values')\nclass Reader(MovingAverage):\n"
    text += "    def reset_parameters(self):\n        super().reset_parameters()\n        self.logit.sum().item()\n"
    place = tmp_path / "reader.py"
    place.write_text(text)
    (tmp_path / "own_mixer.py").write_text(OWN_MIXER.read_text().replace('"moving_average"', '"moving_average_2"'))
    import_place(str(place))
    with pytest.raises(InputError, match="let its constructor read no value of a tensor"):
        contender("mixer:reads_values")


# Models of Hugging Face: their shape.


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_hugging_face_is_scaled_to_a_size(kind: str) -> None:
    config = solve(f"hf:{kind}", 300_000, **SIZES)
    assert isinstance(config, PreTrainedConfig)
    assert config.model_type == kind
    model = make_model(config)
    assert model.non_embedding_parameters == pytest.approx(300_000, rel=0.02)
    base = family(kind).base
    if kind != "mamba":
        assert 16 <= config.hidden_size // config.num_attention_heads <= 40
    if kind in ("mistral", "gemma2"):
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert config.sliding_window == base.sliding_window
    if kind == "gemma2":
        assert config.layer_types == [base.layer_types[layer] for layer in range(config.num_hidden_layers)]


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_a_model_of_hugging_face_meets_flops(kind: str) -> None:
    config = solve(f"hf:{kind}", 700_000, measure="flops", **SIZES)
    model = HuggingFaceModel(config).eval()  # type: ignore[arg-type]
    with torch.no_grad(), FlopCounter() as counter:
        model(torch.zeros(1, SIZES["context"], dtype=torch.int64))
    assert counter.total / SIZES["context"] == pytest.approx(700_000, rel=0.02)


def test_heads_are_near_the_given_ones_where_there_is_room() -> None:
    config = family("mistral").config(vocab_size=258, context=64, width=4096, depth=2)
    assert (config.num_attention_heads, config.head_dim, config.num_key_value_heads) == (32, 128, 8)
    assert config.intermediate_size == 14336


def test_as_is_keeps_every_size() -> None:
    config = solve("hf:gpt2:as_is", "300k", **SIZES)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert config.vocab_size == 258


def test_what_keeps_its_own_size_is_the_target_for_the_others(tmp_path: Path) -> None:
    document = {"model_type": "gpt2", "n_layer": 3, "n_embd": 48, "n_head": 3}
    (tmp_path / "small.json").write_text(json.dumps(document))
    name = f"hf:{tmp_path / 'small.json'}:as_is"
    plan = make_plan(PlanSettings(models=(name, "transformer", "hf:mistral"), context=64), prices())
    first, second, third = plan["models"]
    assert (first["width"], first["depth"], first["is_reach_known"]) == (48, 3, False)
    assert second["parameters"] == pytest.approx(first["parameters"], rel=0.02)
    assert third["parameters"] == pytest.approx(first["parameters"], rel=0.02)


def test_options_hold_fields_under_either_name() -> None:
    for name in ("n_layer", "num_hidden_layers"):
        config = solve(f"hf:gpt2:{name}=3:resid_pdrop=0.0", 200_000, **SIZES)
        assert (config.num_hidden_layers, config.resid_pdrop) == (3, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_and_a_shape_are_read_back(kind: str) -> None:
    config = tiny(kind)
    assert config_of_document(json.loads(json.dumps(document_of(config)))).to_dict() == config.to_dict()
    shape = json.loads(json.dumps(shape_of(config, {})))
    again = config_of_shape(f"hf:{kind}", shape, vocab_size=40, context=64)
    assert again.to_dict() == config.to_dict()


# Models of Hugging Face: what they do and what they cost.


@pytest.mark.parametrize(
    ("kind", "separates", "continues"),
    [("mistral", True, True), ("gemma2", True, True), ("gpt2", True, True), ("mamba", False, False)],
)
def test_what_a_model_does_is_found_by_trying(kind: str, separates: bool, continues: bool) -> None:
    behaviour = tiny_model(kind).behaviour
    assert (behaviour.separates_documents, behaviour.continues) == (separates, continues)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2"])
def test_nothing_crosses_the_border_of_a_document(kind: str) -> None:
    model = tiny_model(kind)
    tokens = torch.randint(40, (2, 40))
    documents = torch.tensor([[3] * 9 + [5] * 31, [0] * 30 + [1] * 10])
    with torch.no_grad():
        packed = model(tokens, document_ids=documents).logits
        for row, border in enumerate((9, 30)):
            for part in (slice(0, border), slice(border, 40)):
                alone = model(tokens[row : row + 1, part]).logits
                assert packed[row, part].allclose(alone[0], rtol=0, atol=2e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_and_steps_give_what_the_forward_gives(kind: str) -> None:
    """Beyond the window, so that a cache that forgets is seen to forget no more than the forward does."""
    model = tiny_model(kind)
    tokens = torch.randint(40, (2, 36))
    with torch.no_grad():
        whole = model(tokens).logits
        logits, state = model.prefill(tokens[:, :30])
        found = [logits]
        kept = state.clone()
        for place in range(30, 36):
            logits, state = model.step(tokens[:, place], state)
            found.append(logits)
        assert torch.stack(found, dim=1).allclose(whole[:, 29:], rtol=0, atol=2e-4 * float(whole.abs().max()))
        again, _ = model.step(tokens[:, 30], kept)
        assert again.equal(found[1])
    assert (state.read, kept.read) == (36, 31 - 1)


def test_a_model_that_cannot_read_on_says_so() -> None:
    model = tiny_model("mamba")
    _, state = model.prefill(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="read the whole text at once"):
        model.prefill(torch.zeros(1, 3, dtype=torch.int64), state)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_that_are_counted(kind: str) -> None:
    """Below the window, at it and beyond it, though only the shortest lengths were run for the formula."""
    model = tiny_model(kind)
    for time in (5, 24, 33, 60):
        tokens = torch.randint(40, (1, time))
        with torch.no_grad():
            with FlopCounter() as forward:
                _, cache = run(model.inner, tokens, None)
            assert model.cost(1, time).product_flops == forward.total
            assert model.state_bytes(1, time) == nbytes(cache)
            assert model.cost(1, time).state_bytes == nbytes(cache)
            with FlopCounter() as step:
                run(model.inner, tokens[:, :1], cache)
        assert model.step_cost(1, time).product_flops == step.total
    assert model.cost(3, 60).product_flops == 3 * model.cost(1, 60).product_flops
    assert model.cost(1, 9).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["gemma2", "mamba"])
def test_many_layers_are_counted_from_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(kind, depth=9)
    seen: list[int] = []
    count = counting._count

    def counted(model: Any) -> Any:
        seen.append(model.config.num_hidden_layers)
        return count(model)

    monkeypatch.setattr(counting, "_count", counted)
    whole = count(hollow(config))
    found = counts_of(config, torch.float32)
    assert max(seen) < 9
    assert [found.forward(time) for time in (5, 30, 100)] == [whole.forward(time) for time in (5, 30, 100)]
    assert [found.one_step(at) for at in (5, 30, 100)] == [whole.one_step(at) for at in (5, 30, 100)]
    assert found.lines == whole.lines


def test_a_hollow_model_takes_no_memory_and_states_follow_its_precision() -> None:
    config = tiny("gpt2")
    assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in hollow(config).parameters())
    half, single = (counts_of(config, dtype).state_bytes(10) for dtype in (torch.bfloat16, torch.float32))
    assert single == 2 * half


def test_whether_a_state_grows_is_read_off_the_cache() -> None:
    assert [tiny_model(kind).has_growing_state for kind in KINDS] == [False, True, True, False]


def test_a_table_of_positions_is_an_end_and_no_parameter() -> None:
    model = tiny_model("gpt2", context=32)
    assert model.longest_context == 48
    assert model.non_embedding_parameters == sum(
        parameter.numel() for name, parameter in model.named_parameters() if "wte" not in name and "wpe" not in name
    )
    assert tiny_model("mistral").longest_context is None


def test_decay_leaves_the_decays_of_a_state_space_alone() -> None:
    decayed, kept = decay_groups(tiny_model("mamba"))
    assert {name.rpartition(".")[2] for name in kept if name not in decayed} >= {"A_log", "D"}
    assert {"A_log", "D"}.isdisjoint(name.rpartition(".")[2] for name in decayed)


# Runs.


def train_tiny(folder: Path, model: str, out: Path, **changes: Any) -> TrainResult:
    resume, reporter = changes.pop("resume", False), changes.pop("reporter", None)
    values = {
        "data": str(folder),
        "model": model,
        "params": "12k",
        "context": 16,
        "batch_size": 4,
        "tokens": 640,
        "out": str(out),
        "evaluate_tokens": 100,
        "final_evaluate_tokens": 200,
        **changes,
    }
    return train(settings_from(values), resume=resume, reporter=reporter, message=lambda text: None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_hugging_face_opens_with_transformers_and_with_ours(
    kind: str, corpus_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train_tiny(corpus_folder, f"hf:{kind}", out)
    assert result.status == "finished"
    assert result.parameters == pytest.approx(12_000, rel=0.02)
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    ours = open_model(out)
    assert isinstance(ours, HuggingFaceModel)
    assert type(theirs) is type(ours.inner)
    tokens = torch.randint(256, (1, 12))
    with torch.no_grad():
        assert theirs(tokens).logits.equal(ours(tokens).logits)
    text = theirs.generate(tokens, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        chosen = theirs(text[:, :-1]).logits[0, -3:].argmax(dim=1)
    assert text[0, -3:].equal(chosen)
    with pytest.raises(InputError, match=f"holds a {kind} of Hugging Face, which this command cannot run"):
        load_model(out)


def test_a_run_of_hugging_face_goes_on_where_it_stopped(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def stop(*, step: int, **rest: Any) -> None:
        if step >= 4 and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("seqmix.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = "hf:gpt2:resid_pdrop=0:embd_pdrop=0:attn_pdrop=0"
    train_tiny(corpus_folder, model, whole)
    first = train_tiny(corpus_folder, model, parts, reporter=stop)
    second = train_tiny(corpus_folder, model, parts, resume=True)
    assert (first.status, first.steps) == ("interrupted", 4)
    assert (second.status, second.steps, second.resumed_from) == ("finished", 10, 4)
    for one, other in zip(open_model(whole).parameters(), open_model(parts).parameters(), strict=True):
        assert one.equal(other)
    third = train_tiny(corpus_folder, model, tmp_path / "third", init_from=str(whole), learning_rate=1e-12)
    assert third.status == "finished"
    for one, other in zip(open_model(whole).parameters(), open_model(tmp_path / "third").parameters(), strict=True):
        assert one.allclose(other, atol=1e-6)


def test_an_unfinished_or_damaged_run_is_told_in_one_sentence(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"cannot be opened .*restore it"):
        open_model(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "gpt2"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 17}')
    with pytest.raises(InputError, match="a config of type 'llama' is refused by transformers"):
        open_model(tmp_path)


# Files of the user's own.


def test_a_run_of_a_mixer_that_is_not_known_names_the_import(
    corpus_folder: Path, tmp_path: Path, own_mixer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train_tiny(corpus_folder, "mixer:moving_average:decay=0.5", out, imports=[str(OWN_MIXER)])
    config = load_model(out).config
    assert config.mixer_of_layer(0) == {"name": "moving_average", "decay": 0.5}
    monkeypatch.setattr(mixers, "_registered", {})
    with pytest.raises(InputError, match=rf"uses the mixer 'moving_average', .*give --import {OWN_MIXER}"):
        load_model(out)
    (out / "settings.json").unlink()
    with pytest.raises(InputError, match=r"give --import FILE\.py with the file that registers it"):
        load_model(out)


def test_a_file_is_run_once_and_its_errors_are_sentences(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(
        "from pathlib import Path\nwith Path(__file__).with_name('log').open('a') as log:\n    log.write('x')\n"
    )
    bad.write_text("1 / 0\n")
    assert import_all([str(good), str(good), "json"]) == [str(good), str(good), "json"]
    assert (tmp_path / "log").read_text() == "x"
    for place, words in (
        (str(bad), r"cannot be imported \(ZeroDivisionError: division by zero\): mend it first"),
        (str(tmp_path / "none.py"), "there is no file"),
        ("no_such_module", "give a module's name or FILE.py"),
    ):
        for _ in range(2):
            with pytest.raises(InputError, match=words):
                import_all([place])


# The guide for a stranger's mixer.

GUIDE = Path(__file__).parent.parent / "docs" / "your_own_mixer.md"


def blocks_of_guide() -> list[tuple[str, str]]:
    """(kind, text) of the guide's code blocks, in order."""
    return re.findall(r"^```(\S.*)\n((?:.*\n)*?)```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_guide_shows_the_example_as_it_is() -> None:
    shown = [text for kind, text in blocks_of_guide() if kind == "python" and not text.startswith("# examples/")]
    assert len(shown) >= 4
    source = OWN_MIXER.read_text(encoding="utf-8")
    assert [text for text in shown if text not in source] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / OWN_MIXER.name).write_text(OWN_MIXER.read_text(encoding="utf-8"), encoding="utf-8")
    outputs: list[str] = []
    for kind, text in blocks_of_guide():
        if kind == "python" and text.startswith("# examples/"):
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        if not kind.startswith("sh"):
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            assert words[0] == "seqmix"
            done = subprocess.run(
                [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=900
            )
            assert (done.returncode != 0) == kind.endswith("fails"), done.stdout + done.stderr
            outputs.append(done.stdout + done.stderr)
    assert "0 failed" in outputs[0]
    assert "readout(M · values) for 1 positions is off by 0.31" in outputs[1]
    assert "mixer:moving_average:decay=0.5" in outputs[3]
    assert "give --import" in outputs[4]
    assert "bits per byte" in outputs[5]
    assert outputs[6]


def test_a_comparison_takes_a_strangers_mixer_and_a_model_of_hugging_face(
    corpus_folder: Path, tmp_path: Path, own_mixer: None
) -> None:
    settings = CompareSettings(
        data=str(corpus_folder),
        models=("hf:mamba", "mixer:moving_average", "mixer:moving_average:decay=0.5"),
        params="12k",
        context=16,
        batch_size=4,
        budget="tokens=640",
        evaluate_tokens=200,
        speed_seconds=0.2,
        threads=1,
        device="cpu",
        imports=(str(OWN_MIXER),),
    )
    results = run_comparison(settings, tmp_path / "out", Silent())
    assert [(one["model"], one["status"]) for one in results["contenders"]] == [
        (name, "finished") for name in settings.models
    ]
    theirs, ours, other = results["contenders"]
    assert [one["parameters"] for one in results["contenders"]] == pytest.approx(3 * [12_000], rel=0.02)
    assert (theirs["is_reach_known"], ours["is_reach_known"]) == (False, True)
    assert (theirs["folder"], other["folder"]) == ("runs/hf-mamba-0", "runs/mixer-moving_average-decay=0.5-0")
    assert len(theirs["gradient_norm_by_depth"]) == theirs["depth"]
    model = open_model(tmp_path / "out" / theirs["folder"])
    assert isinstance(model, HuggingFaceModel)
    with torch.no_grad():
        _, state = model.prefill(torch.zeros(1, 16, dtype=torch.int64))
    assert theirs["state_bytes"]["16"] == state.nbytes
    crossing = "hf:mamba does not keep packed documents apart"
    assert any(crossing in sentence for sentence in results["verdict"])
    assert not any(f"{name} does not keep" in " ".join(results["verdict"]) for name in settings.models[1:])
    assert f"--import {OWN_MIXER}" in results["command"]


class Silent:
    """A display that shows nothing."""

    def update(self, share: float, note: str = "", time_left: float | None = None, label: str | None = None) -> None:
        pass

    def message(self, text: str) -> None:
        pass
