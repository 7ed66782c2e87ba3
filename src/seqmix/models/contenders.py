"""What a command calls a model, and what is made of it: a preset, a stack of one mixer, a model of Hugging Face.

    PRESET                        a model of `seqmix list`
    mixer:NAME                    a Llama-like stack of one causal mixer: RMSNorm, the mixer, SwiGLU feed-forward
    hf:TYPE, hf:FILE, hf:FOLDER   a causal language model of Hugging Face, from its config
    ...:KEY=VALUE:KEY=VALUE       any of these with options, values in YAML
    hf:...:as_is                  with the width, the depth and all the sizes that its config has

The options of `mixer:NAME` are the mixer's own and fields of SeqmixConfig; those of a preset the latter, and those of
`hf:` fields of its config. A model is known by all that it was called, so that one preset may take part twice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedConfig

from seqmix.errors import InputError, unknown_name
from seqmix.mixer import Traits
from seqmix.mixers import create_mixer, list_mixers, mixer_class
from seqmix.models.config import SeqmixConfig
from seqmix.models.huggingface import (
    PREFIX,
    HuggingFaceFamily,
    HuggingFaceModel,
    behaviour_of,
    config_document,
    config_from_document,
)
from seqmix.models.language_model import SeqmixForCausalLM
from seqmix.models.presets import PRESETS, Preset, preset
from seqmix.models.presets.base import feed_forward_width, head_count

MIXER_PREFIX = "mixer:"
AS_IS = "as_is"

AnyConfig = SeqmixConfig | PreTrainedConfig
LanguageModel = SeqmixForCausalLM | HuggingFaceModel

VOCABULARY = 258
"""Of the config that is tried out when a model of Hugging Face is named; its sizes decide nothing."""

_OPTION = re.compile(rf"{AS_IS}|[A-Za-z_]\w*=[^:]*")
_LENGTHS = ("context", "length", "max_length")
"""What mixers call the longest sequence that they are made for."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that was asked for, at no size yet.

    name: all that it was called. options: those it was called with. as_is: its config's own size is kept.
    """

    name: str
    family: Preset | HuggingFaceFamily
    options: Mapping[str, Any]
    as_is: bool = False

    def usual(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """These options over the contender's own, with width and depth under their usual names."""
        if isinstance(self.family, HuggingFaceFamily):
            return {**self.family.usual(self.options), **self.family.usual(options)}
        return {**self.options, **options}

    def config(self, *, vocab_size: int, context: int, width: int, depth: int, **options: Any) -> AnyConfig:
        """The config at a width and a depth; `options` are the remaining ones, as `usual` gives them."""
        return self.family.config(vocab_size=vocab_size, context=context, width=width, depth=depth, **options)

    def own_config(self, *, vocab_size: int, context: int, **options: Any) -> AnyConfig:
        """The config of a contender that is `as_is`."""
        assert isinstance(self.family, HuggingFaceFamily)
        return self.family.as_given(vocab_size=vocab_size, context=context, **self.usual(options))

    def learning_rate(self, parameters: int) -> float:
        """The peak rate that goes with a number of non-embedding parameters."""
        return self.family.learning_rate(parameters)


def contender(name: str) -> Contender:
    """The contender of a name.

    Raises:
        InputError: nothing is called so, or what is cannot take part; the sentence says why.
    """
    base, words = _split(name.strip())
    if not base:
        raise InputError(f"model {name!r} has no name: choose one of seqmix list, mixer:NAME or hf:CONFIG")
    options = {key: _value(name, text) for key, _, text in (word.partition("=") for word in words if word != AS_IS)}
    as_is = AS_IS in words
    if base.startswith(PREFIX):
        hugging_face = HuggingFaceFamily.of(base.removeprefix(PREFIX), base)
        # Refuses what is not causal before anything is planned.
        behaviour_of(hugging_face.as_given(vocab_size=VOCABULARY, context=VOCABULARY, **options))
        return Contender(name=name.strip(), family=hugging_face, options=options, as_is=as_is)
    if as_is:
        raise InputError(f"model {name!r}: only a model of Hugging Face has a size of its own, leave {AS_IS} out")
    if base.startswith(MIXER_PREFIX):
        chosen = base.removeprefix(MIXER_PREFIX)
        if chosen not in list_mixers():
            error = unknown_name("mixer", chosen, list_mixers())
            raise InputError(f"{error}; a mixer of your own needs --import FILE.py, which registers it")
        known = {one.name for one in dataclasses.fields(mixer_class(chosen).config_class)}
        own = {key: value for key, value in options.items() if key in known}
        family = mixer_stack(base, chosen, own)
        return _checked(Contender(name=name.strip(), family=family, options=_without(options, own)), known)
    if base not in PRESETS:
        if base in list_mixers():
            raise InputError(f"unknown model {base!r}: did you mean '{MIXER_PREFIX}{base}', a stack of that mixer?")
        raise unknown_name("model", base, PRESETS)
    return _checked(Contender(name=name.strip(), family=preset(base), options=options))


def _checked(chosen: Contender, more: Sequence[str] | set[str] = ()) -> Contender:
    """The contender, whose options are all known."""
    known = [*SeqmixConfig.__dataclass_fields__, "position", *more]
    for option in chosen.options:
        if option not in known:
            raise unknown_name(f"option of model {chosen.name!r}", option, known)
    return chosen


def check_contenders(names: Sequence[str]) -> None:
    """Refuses names that are no model, and names given twice."""
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InputError(f"model {name!r} is named twice: name each model once, or give one of them other options")
        contender(name)


def split_names(text: str) -> tuple[str, ...]:
    """Names with commas between them; commas inside of brackets belong to a value."""
    names, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += letter
    return tuple(name.strip() for name in names if name.strip())


def _split(name: str) -> tuple[str, list[str]]:
    """(what is named, its options): the options behind colons at the end, unless they are a path's own."""
    base, words = name, list[str]()
    while ":" in base and not (base.startswith(PREFIX) and Path(base.removeprefix(PREFIX)).exists()):
        rest, _, word = base.rpartition(":")
        if _OPTION.fullmatch(word) is None:
            break
        base, words = rest, [word, *words]
    return base, words


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"model {name!r} has an option whose value {text!r} is not valid YAML: mend it") from error


def _without(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in others}


def _without_size(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("hidden_size", "num_hidden_layers")}


def mixer_stack(name: str, mixer: str, options: Mapping[str, Any]) -> Preset:
    """A preset of one mixer in every layer, each with its norm and a SwiGLU feed-forward.

    Attention and what weighs by content like it get the usual heads, and a mixer that is made for a length gets the
    context, where the options do not say otherwise.

    Raises:
        InputError: the mixer is not causal, or is no mixer of one sequence.
    """
    defaults = {one.name: one.default for one in dataclasses.fields(mixer_class(mixer).config_class)}
    multiple, traits = _width_multiple(mixer, options)
    has_heads = traits.content_dependent and defaults.get("heads", 0) is None and "heads" not in options
    lengths = [one for one in _LENGTHS if one in defaults and one not in options]

    def build(width: int, depth: int, context: int) -> dict[str, Any]:
        heads = {"heads": head_count(width)} if has_heads else {}
        entry = {"name": mixer, **heads, **dict.fromkeys(lengths, context), **options}
        return {"mixers": [entry], "feed_forward": feed_forward_width(width)}

    if traits.resamples or not traits.causal:
        why = "changes the length of a sequence" if traits.resamples else "is not causal"
        raise InputError(f"model {name!r} cannot be a language model: the mixer {mixer!r} {why}, choose a causal one")
    return Preset(
        name=name,
        summary=f"Llama-like: RMSNorm, {mixer}, SwiGLU feed-forward",
        build=build,
        # As the presets' own: attention wants half the rate of what has a constant state.
        rate=1.5e-3 if traits.state_growth == "linear" else 3e-3,
        width_multiple=multiple,
    )


def _width_multiple(mixer: str, options: Mapping[str, Any]) -> tuple[int, Traits]:
    """What widths must be multiples of for a mixer with its options to be made, by trying; and its traits."""
    refusal: InputError | None = None
    for multiple in (8, 16, 32, 64, 128):
        try:
            with torch.device("meta"):
                made = [create_mixer(mixer, factor * multiple, **options) for factor in (1, 3, 5)]
            return multiple, made[0].traits
        except InputError as error:
            refusal = error
        except TypeError as error:
            raise InputError(f"mixer {mixer!r} cannot be made ({error}): give mixer:{mixer}:OPTION=VALUE") from error
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"mixer {mixer!r} cannot be made without memory, as sizes are found ({error}): "
                "let its constructor read no value of a tensor, only Python's numbers"
            ) from error
    assert refusal is not None
    raise refusal


def make_model(config: AnyConfig) -> LanguageModel:
    """The model of a config, with drawn weights."""
    return SeqmixForCausalLM(config) if isinstance(config, SeqmixConfig) else HuggingFaceModel(config)


def on_meta(config: AnyConfig) -> LanguageModel:
    """The model without memory for its weights: it answers what it costs."""
    with torch.device("meta"):
        return make_model(config)


def layers_of(model: LanguageModel) -> list[nn.Module]:
    """The blocks of a model, first to last."""
    return list(model.model.layers) if isinstance(model, SeqmixForCausalLM) else model.layers


def document_of(config: AnyConfig) -> dict[str, Any]:
    """A config as a JSON value."""
    return config.to_dict() if isinstance(config, SeqmixConfig) else config_document(config)


def config_of_document(document: Mapping[str, Any]) -> AnyConfig:
    """The config that `document_of` wrote down."""
    if document.get("model_type") == SeqmixConfig.model_type:
        return SeqmixConfig.from_dict(dict(document))
    return config_from_document(document)


def shape_of(config: AnyConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `create_model` makes the same model of again: of Hugging Face's, all that its config says."""
    if not isinstance(config, SeqmixConfig):
        return {key: value for key, value in config_document(config).items() if key != "vocab_size"}
    return {
        **options,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "feed_forward": config.feed_forward,
    }


def config_of_shape(name: str, shape: Mapping[str, Any], *, vocab_size: int, context: int) -> AnyConfig:
    """The config of a contender whose options leave no size open, such as those of `shape_of`."""
    if "model_type" in shape:
        return config_from_document({**shape, "vocab_size": vocab_size})
    chosen = contender(name)
    if chosen.as_is:
        return chosen.own_config(vocab_size=vocab_size, context=context, **shape)
    options = chosen.usual(shape)
    return chosen.config(
        vocab_size=vocab_size,
        context=context,
        width=options["hidden_size"],
        depth=options["num_hidden_layers"],
        **_without_size(options),
    )


def has_size(chosen: Contender, options: Mapping[str, Any]) -> bool:
    """Whether options leave no size open."""
    return (
        chosen.as_is or "model_type" in options or {"hidden_size", "num_hidden_layers"} <= chosen.usual(options).keys()
    )
