"""What a preset is: a small function from a size to a complete config, and a learning rate: tried, or a relative's.

A preset's shape is a width and a depth; everything else follows from those two and the context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seqmix.errors import InputError, unknown_name
from seqmix.models.config import EMBEDDING_POSITIONS, SeqmixConfig

POSITIONS = (*EMBEDDING_POSITIONS, "alibi")
"""What the option `position` of a preset can be."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A family of models.

    name: as the commands know it. summary: one line. build: (width, depth, context) -> config fields.
    rate: peak learning rate at a million non-embedding parameters; `learning_rate` scales it.
    width_multiple: widths are multiples of it. depth_factor: layers beside those of a transformer of the same size,
        above 1 where a layer has fewer parameters.
    """

    name: str
    summary: str
    build: Callable[[int, int, int], dict[str, Any]]
    rate: float
    width_multiple: int = 8
    depth_factor: float = 1.0

    def config(self, *, vocab_size: int, context: int, width: int, depth: int, **options: Any) -> SeqmixConfig:
        """The config of this preset at a size.

        Args:
            options: fields of SeqmixConfig that replace the preset's, and `position`: how positions are told apart,
                one of `POSITIONS`. "rope" and "alibi" are attention's own where there is attention.
        """
        known = [*SeqmixConfig.__dataclass_fields__, "position"]
        for option in options:
            if option not in known:
                raise unknown_name(f"option of model {self.name!r}", option, known)
        position = options.pop("position", None)
        fields: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "max_position_embeddings": context,
            "preset": self.name,
            **self.build(width, depth, context),
            **options,
        }
        return SeqmixConfig(**fields if position is None else with_position(fields, position))

    def learning_rate(self, parameters: int) -> float:
        """Peak rate at a number of non-embedding parameters: rate * (parameters / 10^6)^(-1/4), at most 4 * rate."""
        return self.rate * min(4.0, (max(parameters, 1) / 1e6) ** -0.25)


def with_position(fields: Mapping[str, Any], position: str) -> dict[str, Any]:
    """Fields of a config whose positions are told apart in another way.

    Raises:
        InputError: an unknown kind, or ALiBi (a bias on attention's scores) for a model without attention.
    """
    if position not in POSITIONS:
        raise unknown_name("position", position, POSITIONS)
    mixers = fields["mixers"]
    has_attention = any(mixer["name"] == "attention" for mixer in mixers)
    if position == "alibi" and not has_attention:
        raise InputError(
            f"position 'alibi' is a bias on attention's scores, and {fields['preset']} has no layer of attention: "
            f"choose one of {', '.join(EMBEDDING_POSITIONS)}"
        )
    by_attention = {"rope": position == "rope"} | ({"alibi": True} if position == "alibi" else {})
    is_of_embedding = position in EMBEDDING_POSITIONS and not (position == "rope" and has_attention)
    return {
        **fields,
        "mixers": [{**mixer, **by_attention} if mixer["name"] == "attention" else mixer for mixer in mixers],
        "embedding_position": position if is_of_embedding else "none",
    }


def feed_forward_width(width: int) -> int:
    """Llama's: 8/3 of the width, to a multiple of 8."""
    return max(8, 8 * round(width / 3))


def head_count(width: int) -> int:
    """Heads of an even width of about 32 in small models, 64 in middle and 128 in large ones."""
    head_dim = 32 if width < 256 else 64 if width < 2048 else 128
    return max(h for h in range(1, max(1, width // head_dim) + 1) if width % (2 * h) == 0)


def dilations_within(context: int, kernel: int, most: int) -> list[int]:
    """1, kernel, kernel^2, ...: at most `most` of them, while kernel * dilation stays within the context.

    A layer of each then sees kernel^count positions without a gap and none of them twice.
    """
    return [kernel**power for power in range(most) if power == 0 or kernel ** (power + 1) <= context]


def attention(width: int, **options: Any) -> dict[str, Any]:
    """The entry of an attention layer with heads of the usual width."""
    return {"name": "attention", "heads": head_count(width), **options}


def shared_heads(width: int, share: int) -> dict[str, Any]:
    """The option that lets `share` heads, or as many as divide them below that, have keys and values in common."""
    heads = head_count(width)
    return {"kv_heads": heads // next(count for count in range(share, 0, -1) if heads % count == 0)}
