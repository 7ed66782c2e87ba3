"""The configuration of a seqmix language model: which mixer stands in which layer, and what is around it."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from seqmix.errors import InputError, unknown_name

NORMS = ("rms", "layer")
NORM_POSITIONS = ("pre", "post")
EMBEDDING_POSITIONS = ("none", "learned", "sinusoidal", "rope")


class SeqmixConfig(PreTrainedConfig):
    """A stack of blocks, each a mixer and mostly a gated feed-forward.

    Args:
        vocab_size: number of tokens.
        hidden_size: width of the model, D.
        num_hidden_layers: number of blocks.
        mixers: one entry a layer, or a shorter pattern that the layers repeat; an entry is
            `{"name": MIXER, OPTION: VALUE, ...}` with the options of that mixer's config.
        feed_forward: width of the SwiGLU feed-forward, 0 for none; one number, or one a layer.
        feed_forward_mixers: mixers in place of the SwiGLU, given as `mixers` is; feed_forward is their option `hidden`.
        norm: "rms" or "layer".
        norm_position: "pre" (x + f(norm(x)), and a norm at the end) or "post" (norm(x + f(x))).
        norm_eps: added to the variance.
        embedding_position: "none", "learned", "sinusoidal", or "rope" to turn the embedding by its position in the
            document; see `positions.py`.
        rope_theta: the base of the rotation and of the sinusoids.
        max_position_embeddings: the context the model is made and trained for, in tokens; as many positions are
            learned where they are.
        initializer_range: standard deviation of the embedding.
        preset: the name of the preset this came from, if any.
    """

    model_type = "seqmix"
    keys_to_ignore_at_inference = ("past_key_values",)
    # TRL reads this of every config; an own class outside of transformers has no entry.
    auto_map: ClassVar[dict[str, str]] = {}

    vocab_size: int = 258
    hidden_size: int = 128
    num_hidden_layers: int = 4
    mixers: list[dict[str, Any]] | None = None
    feed_forward: int | list[int] = 0
    feed_forward_mixers: list[dict[str, Any]] | None = None
    norm: str = "rms"
    norm_position: str = "pre"
    norm_eps: float = 1e-5
    embedding_position: str = "none"
    rope_theta: float = 10000.0
    max_position_embeddings: int = 256
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    preset: str | None = None
    bos_token_id: int | None = 256
    eos_token_id: int | list[int] | None = 256
    pad_token_id: int | None = 257

    def __post_init__(self, **kwargs: Any) -> None:
        if self.mixers is None:
            self.mixers = [{"name": "attention"}]
        for name, value, known in (
            ("norm", self.norm, NORMS),
            ("norm_position", self.norm_position, NORM_POSITIONS),
            ("embedding_position", self.embedding_position, EMBEDDING_POSITIONS),
        ):
            if value not in known:
                raise unknown_name(name, value, known)
        for name, size in (
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ):
            if size < 1:
                raise InputError(f"{name} is {size}: it must be at least 1")
        for name, entries in (("mixers", self.mixers), ("feed_forward_mixers", self.feed_forward_mixers)):
            if entries is not None and not 1 <= len(entries) <= self.num_hidden_layers:
                raise InputError(
                    f"{name} has {len(entries)} entries for {self.num_hidden_layers} layers: give one a layer, "
                    "or a shorter pattern to repeat"
                )
        if self.feed_forward_mixers is not None and self.feed_forward == 0:
            raise InputError("feed_forward_mixers is given but feed_forward is 0: give the width of the mixers inside")
        if isinstance(self.feed_forward, list) and len(self.feed_forward) != self.num_hidden_layers:
            raise InputError(
                f"feed_forward has {len(self.feed_forward)} widths for {self.num_hidden_layers} layers: "
                "give one number, or one a layer"
            )
        super().__post_init__(**kwargs)

    def mixer_of_layer(self, layer: int) -> dict[str, Any]:
        """The entry of `mixers` that a layer uses."""
        assert self.mixers is not None
        return self.mixers[layer % len(self.mixers)]

    def feed_forward_mixer_of_layer(self, layer: int) -> dict[str, Any] | None:
        """The entry of `feed_forward_mixers` that a layer uses, with its width; None where it has none."""
        width = self.feed_forward_of_layer(layer)
        if self.feed_forward_mixers is None or not width:
            return None
        return {**self.feed_forward_mixers[layer % len(self.feed_forward_mixers)], "hidden": width}

    def feed_forward_of_layer(self, layer: int) -> int:
        """The width of a layer's feed-forward, 0 for none."""
        return self.feed_forward[layer] if isinstance(self.feed_forward, list) else self.feed_forward

    def kind_of_layer(self, layer: int) -> str:
        """Equal for layers that are built alike."""
        return repr(
            (self.mixer_of_layer(layer), self.feed_forward_of_layer(layer), self.feed_forward_mixer_of_layer(layer))
        )
