"""The options of attention, and what follows from them before there are weights."""

from __future__ import annotations

from dataclasses import dataclass

from seqmix.errors import InputError
from seqmix.mixers.links.pattern import Pattern, window
from seqmix.mixers.links.text import parse_pattern


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The options of softmax attention.

    heads: None for head widths near 64. kv_heads: groups of heads that share keys and values; None for heads.
    head_dim: None for dim // heads.
    rope: turn q and k by their position in the document, half-split pairs, base rope_theta.
    window: the positions seen, the present one included; None for all. Not causal: as many after it too.
    pattern: in place of a window, the links as a `Pattern` or as its text: "window(256) | global_(4) | random(3)".
    alibi: scores fall with the distance, by a slope of each head. qk_norm: RMSNorm with qk_norm_eps on q and k.
    bias: on all four projections.
    """

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rope: bool = True
    rope_theta: float = 10000.0
    window: int | None = None
    pattern: Pattern | str | None = None
    causal: bool = True
    alibi: bool = False
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        for name in ("rope_theta", "qk_norm_eps"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be greater than 0")
        if self.alibi and self.rope:
            raise InputError("alibi and rope are both True: both tell positions apart, so give rope=False with alibi")
        if self.pattern is not None and self.window is not None:
            raise InputError(f"window is {self.window} beside a pattern: put the window into the pattern")
        if self.pattern is not None:
            # Text, whichever was given, so that a config can be written to a file.
            object.__setattr__(self, "pattern", str(parse_pattern(str(self.pattern))))

    @property
    def link_pattern(self) -> Pattern | None:
        """The pattern of links, a window's too; None where all are used."""
        if self.window is not None:
            return window(self.window)
        pattern = None if self.pattern is None else parse_pattern(str(self.pattern))
        return None if pattern is None or pattern.is_full else pattern

    @property
    def ring(self) -> int | None:
        """The latest positions that the state holds; None for all."""
        return None if self.link_pattern is None else self.link_pattern.ring

    @property
    def kept(self) -> int:
        """The first positions that the state holds besides."""
        return 0 if self.link_pattern is None or self.ring is None else self.link_pattern.kept
