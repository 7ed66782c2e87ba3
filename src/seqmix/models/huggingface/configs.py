"""Configs of Hugging Face's causal language models: found by name, folder or file, and scaled to a width and a depth.

A shape keeps the given one's proportions: its heads (of at most the size that the presets use at that width), its ratio
of key-value heads, its feed-forward, and its pattern of layers. Everything else stays as given, but for the vocabulary,
the special tokens and the positions, which follow the comparison. Nothing but a config is ever read: no weights, and
no code that a config names.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from seqmix.errors import InputError, unknown_name
from seqmix.models.presets.base import head_count

PREFIX = "hf:"

CONTEXT = "seqmix_context"
"""The field that the context a model is made and trained for is kept in."""

SPARE_POSITIONS = 16
"""Learned positions beyond the context, for the tokens that are generated, and timed, after a full one."""

DEFAULT_CONTEXT = 1024
"""Of a config that names none."""

NOT_THE_SHAPE = frozenset(
    {
        CONTEXT,
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "model_type",
        "pad_token_id",
        "quantization_config",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "vocab_size",
    }
)
"""What a given config says that the comparison decides, or that is no part of a model with new weights."""

FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
"""The names that widths of a feed-forward have."""

_WIDTHS = (
    *FEED_FORWARD,
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "attention_hidden_size",
    "lru_width",
    "word_embed_proj_dim",
)
"""Widths that grow with the model's."""


def model_types() -> list[str]:
    """The types that transformers has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def read_given(place: str) -> tuple[str, dict[str, Any]]:
    """(model type, fields of the config) of a type's name, a config file or a folder with config.json.

    Raises:
        InputError: there is no such type, file or folder, or it holds no config.
    """
    name = f"{PREFIX}{place}"
    if place in CONFIG_MAPPING:
        return place, {}
    path = Path(place).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        if path.parent.is_dir() and path.name == "config.json":
            raise InputError(f"model {name!r}: the folder holds no config.json, give one that save_pretrained wrote")
        near = difflib.get_close_matches(place, model_types(), n=1)
        remedy = (
            f"did you mean {PREFIX + near[0]!r}?"
            if near
            else "give a folder with config.json, a config's .json, or a type such as hf:gpt2 or hf:mistral"
        )
        raise InputError(f"model {name!r} is no folder, no file and no model type of transformers: {remedy}")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not readable JSON ({error}): give the config of a model") from error
    kind = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"{str(path)!r} names no model_type: give the config of a Hugging Face model")
    if kind not in CONFIG_MAPPING:
        raise unknown_name(f"model_type in {str(path)!r}", kind, model_types())
    return kind, {key: value for key, value in given.items() if key not in NOT_THE_SHAPE}


def config_from_document(document: Mapping[str, Any]) -> PreTrainedConfig:
    """The config that `config_document` wrote down."""
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(f"model_type is {kind!r}, which this transformers does not know: use the one that wrote it")
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(PreTrainedConfig._decode_special_floats(dict(document)))
    except Exception as error:
        words = " ".join(str(error).split())
        raise InputError(f"a config of type {kind!r} is refused by transformers ({words[:200]}): mend it") from error


def config_document(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a config differs from its type's defaults, as a JSON value."""
    return json.loads(config.to_json_string(use_diff=True))


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFamily:
    """The models that one config stands for, at any size; it answers as a `Preset` does.

    name: what was asked for. kind: the model type. given: the fields that its config sets.
    rate: the transformer's, for every type.
    """

    name: str
    kind: str
    given: Mapping[str, Any] = field(repr=False)
    rate: float = 1.5e-3

    @classmethod
    def of(cls, place: str, name: str) -> HuggingFaceFamily:
        """The family of a type's name, a file or a folder.

        Raises:
            InputError: as `read_given`; or no causal language model comes of it.
        """
        kind, given = read_given(place)
        config_class = CONFIG_MAPPING[kind]
        if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise InputError(
                f"{name} cannot take part: transformers has no causal language model of type {kind!r}, "
                "choose one that has"
            )
        family = cls(name=name, kind=kind, given=given)
        base = family.base
        if getattr(base, "is_encoder_decoder", False):
            raise InputError(f"{name} cannot take part: {kind!r} is an encoder-decoder, choose a decoder alone")
        for needed in ("hidden_size", "num_hidden_layers"):
            if not isinstance(getattr(base, needed, None), int):
                text = f"hf:{kind}_text"
                hint = f", such as {text}" if f"{kind}_text" in CONFIG_MAPPING else ""
                raise InputError(
                    f"{name} cannot take part: a config of type {kind!r} has no {needed}, "
                    f"give that of a plain language model{hint}"
                )
        return family

    @cached_property
    def base(self) -> PreTrainedConfig:
        """The config as given."""
        return self._make(dict(self.given))

    @property
    def width_multiple(self) -> int:
        """Widths are multiples of it; smaller steps where there is no feed-forward to make fit."""
        return 8 if has_feed_forward(self.base) else 4

    @property
    def depth_factor(self) -> float:
        """Layers beside those of a transformer: more, where a layer has no feed-forward."""
        return 1.0 if has_feed_forward(self.base) else 1.5

    @property
    def names(self) -> Mapping[str, str]:
        """The usual name of a field -> this type's."""
        return CONFIG_MAPPING[self.kind].attribute_map

    @property
    def known(self) -> set[str]:
        """The fields that this type has, under any name."""
        config_class = CONFIG_MAPPING[self.kind]
        return {*getattr(config_class, "__dataclass_fields__", {}), *config_class.attribute_map, *vars(self.base)}

    def usual(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with width and depth under their usual names, whichever they were given under.

        Raises:
            InputError: an option that the type does not have.
        """
        theirs = {self.names.get(name, name): name for name in ("hidden_size", "num_hidden_layers")}
        own = {*CONFIG_MAPPING[self.kind].__annotations__, *self.names, "tie_word_embeddings"}
        for option in options:
            if option not in self.known or option.startswith("_"):
                raise unknown_name(f"option of {self.name}", option, own)
        return {theirs.get(option, option): value for option, value in options.items()}

    def learning_rate(self, parameters: int) -> float:
        """As `Preset.learning_rate`."""
        return self.rate * min(4.0, (max(parameters, 1) / 1e6) ** -0.25)

    def config(self, *, vocab_size: int, context: int, width: int, depth: int, **options: Any) -> PreTrainedConfig:
        """The config at a size; `options` are fields to hold fixed."""
        options = self.usual(options)
        positions = {"max_position_embeddings": context + SPARE_POSITIONS}
        return self._for(vocab_size, context, {**positions, **self._shape(width, depth, options), **options})

    def as_given(self, *, vocab_size: int, context: int, **options: Any) -> PreTrainedConfig:
        """The config with the width, the depth and all the sizes that are given."""
        given = getattr(self.base, "max_position_embeddings", None)
        positions = max(given if isinstance(given, int) else 0, context + SPARE_POSITIONS)
        return self._for(vocab_size, context, {"max_position_embeddings": positions, **self.usual(options)})

    def _for(self, vocab_size: int, context: int, fields: Mapping[str, Any]) -> PreTrainedConfig:
        """The given config with the vocabulary and the positions of a comparison, and other fields over it."""
        # A padding token would be a row of the embedding that is never trained, whatever token has its number.
        special = {"bos_token_id": 256, "eos_token_id": 256}
        return self._make(
            {
                **self._without_sizes(),
                CONTEXT: context,
                **{name: number if number < vocab_size else None for name, number in special.items()},
                "pad_token_id": None,
                **fields,
                "vocab_size": vocab_size,
            }
        )

    def _without_sizes(self) -> dict[str, Any]:
        """What is given, under the usual names, so that no field is there twice."""
        usual = {theirs: name for name, theirs in self.names.items()}
        return {usual.get(key, key): value for key, value in self.given.items()}

    def _shape(self, width: int, depth: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that follow from a width and a depth."""
        base, fields = self.base, self.known
        ratio = width / base.hidden_size
        shape: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth}
        for name in _WIDTHS:
            value = getattr(base, name, None)
            declared = self.names.get(name, name) in getattr(type(base), "__dataclass_fields__", {})
            if name in fields and declared and isinstance(value, int):
                shape[name] = width if value == base.hidden_size else max(8, 8 * round(value * ratio / 8))
        shape |= self._heads(width, options)
        for name, value in {**vars(base), **self.given}.items():
            if isinstance(value, list | tuple) and len(value) == base.num_hidden_layers > 1:
                shape[name] = [value[layer % len(value)] for layer in range(depth)]
        return shape

    def _heads(self, width: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Heads near the given size, at most as wide as the presets' at that width, in the given ratios."""
        base = self.base
        heads, groups = getattr(base, "num_attention_heads", None), getattr(base, "num_key_value_heads", None)
        head_dim = getattr(base, "head_dim", None)
        found: dict[str, Any] = {}
        if isinstance(heads, int):
            given_dim = head_dim if isinstance(head_dim, int) else base.hidden_size // heads
            total = width * heads * given_dim / base.hidden_size
            wanted = max(head_count(width), round(total / given_dim))
            # Rotary parts of a head want even numbers, also where they are a quarter of it.
            steps = next(step for step in (8, 2, 1) if width % step == 0)
            divisors = [count for count in range(1, width // steps + 1) if width % (steps * count) == 0]
            nearest = min(divisors, key=lambda count: abs(math.log(count / wanted)))
            chosen = options.get("num_attention_heads", nearest)
            found["num_attention_heads"] = chosen
            if isinstance(groups, int):
                shared = [count for count in range(1, chosen + 1) if chosen % count == 0]
                found["num_key_value_heads"] = min(shared, key=lambda count: abs(count - chosen * groups / heads))
            new_dim = width // chosen
            if isinstance(head_dim, int) and "head_dim" in getattr(type(base), "__dataclass_fields__", {}):
                new_dim = found["head_dim"] = min(max(8, 8 * round(total / chosen / 8)), given_dim)
            for name in ("rotary_dim", "query_pre_attn_scalar"):
                value = getattr(base, name, None)
                if isinstance(value, int):
                    found[name] = new_dim if value == given_dim else min(value, new_dim)
        elif isinstance(getattr(base, "expand", None), int) and isinstance(head_dim, int):
            # Mamba-2: heads and their width are those of the expanded channels, and the groups share them out.
            inner, parts = base.expand * width, int(getattr(base, "n_groups", 1))
            sizes = range(1, min(head_dim, 64) + 1)
            fitting = [size for size in sizes if inner % size == 0 and inner // size % parts == 0]
            if fitting:
                found |= {"head_dim": fitting[-1], "num_heads": inner // fitting[-1]}
        return found

    def _make(self, fields: dict[str, Any]) -> PreTrainedConfig:
        """A config of the type, with its own complaints in one sentence."""
        theirs = {self.names.get(name, name): value for name, value in fields.items()}
        decoded = PreTrainedConfig._decode_special_floats(theirs)
        try:
            with quiet():
                return CONFIG_MAPPING[self.kind](**decoded)
        except InputError:
            raise
        except Exception as error:
            words = " ".join(str(error).split())
            raise InputError(
                f"{self.name} cannot be made with hidden_size {fields.get('hidden_size', 'as given')}: "
                f"transformers says {words[:200]!r}, change its config or its options"
            ) from error


def new_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of a config, with drawn weights; the config is copied."""
    # from_config would look for code that the config names; the class of the config's own type is all there is here.
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with quiet():
        return kind(copy.deepcopy(config))


def open_inner(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """The causal language model that `save_pretrained` wrote into a folder; safetensors alone are read."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with quiet():
        return kind.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True)


def context_of(config: PreTrainedConfig) -> int:
    """The context that a config is made for, which for one of ours is the number of its positions."""
    return getattr(config, CONTEXT, None) or getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT


def fitted_field(config: PreTrainedConfig) -> tuple[str, int] | None:
    """The name and value of the width that may be made to fit a size: of the feed-forward, else of a scan's state."""
    declared = getattr(type(config), "__dataclass_fields__", {})
    for name in (*FEED_FORWARD, "state_size"):
        theirs = type(config).attribute_map.get(name, name)
        if theirs in declared:
            value = getattr(config, name, None)
            return name, value if isinstance(value, int) else 4 * config.hidden_size
    return None


def has_feed_forward(config: PreTrainedConfig) -> bool:
    """Whether the config names the width of a feed-forward."""
    fitted = fitted_field(config)
    return fitted is not None and fitted[0] in FEED_FORWARD


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and remarks: on checkpoints that are not there, on kernels that are not installed."""
    logger = logging.getLogger("transformers")
    before, shows_bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if shows_bars:
            transformers_logging.enable_progress_bar()
