"""The decoder language model: embedding, blocks, norm, and a head over the vocabulary.

Shapes: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.cross_entropy import linear_cross_entropy, linear_token_losses
from seqmix.mixer import BOOKKEEPING_BYTES, Mixer, place
from seqmix.models.block import Block, LayerNorm, RMSNorm, make_norm
from seqmix.models.config import SeqmixConfig
from seqmix.models.padding import documents_of_mask, forward_padded, padding_is_documents
from seqmix.models.positions import PositionEmbedding
from seqmix.models.reach import path_length, positions_seen, receptive_field
from seqmix.models.state import ModelState, SeqmixCache

RESIDUAL_WRITERS = ("o_proj", "out_proj", "down_proj")
"""The projections whose output is added to the residual; they start smaller by sqrt(2 * layers), as GPT-2's do."""


def _shifted(labels: Tensor | None) -> Tensor | None:
    """The target of each position: the next label, and none for the last."""
    return None if labels is None else F.pad(labels[:, 1:], (0, 1), value=-100)


class SeqmixPreTrainedModel(PreTrainedModel):
    """What both classes share with Hugging Face: the config, and how a parameter that no file holds is drawn."""

    config_class = SeqmixConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - the type it has in the base class
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.RMSNorm | nn.LayerNorm | Mixer):
            module.reset_parameters()


class SeqmixModel(SeqmixPreTrainedModel):
    """The model without its head: token ids in, (batch, time, dim) out."""

    def __init__(self, config: SeqmixConfig) -> None:
        super().__init__(config)
        self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = PositionEmbedding(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm: RMSNorm | LayerNorm | nn.Identity = (
            make_norm(config) if config.norm_position == "pre" else nn.Identity()
        )
        self.residual_writers = {
            module
            for name, module in self.layers.named_modules()
            if name.rpartition(".")[2] in RESIDUAL_WRITERS and isinstance(module, nn.Linear)
        }
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | Mixer):
            for writer in self.residual_writers.intersection(module.modules()):
                writer.weight.div_(math.sqrt(2 * self.config.num_hidden_layers))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def mix(
        self,
        embeddings: Tensor,
        state: ModelState | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> tuple[Tensor, ModelState]:
        """From embeddings (batch, time, dim) to the normed output of the last block, and the state after it."""
        placement = place(embeddings, state, document_ids)
        x = self.embed_positions(embeddings, placement.positions)
        layers, branch, shared = [], None, None
        for index, block in enumerate(self.layers):
            before = None if state is None else state.layers[index]
            x, branch, after, shared = block(x, before, document_ids, capacity, branch, shared)
            layers.append(after)
        x = x if isinstance(self.norm, nn.Identity) else self.norm.with_residual(x, branch)[1]
        return x, ModelState(placement.position, placement.document, tuple(layers))

    def step(self, token_ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One more token (batch,) of the state's documents; the state is consumed."""
        x = self.embed_positions(self.embed_tokens(token_ids), state.position)
        layers, shared = [], None
        for block, before in zip(self.layers, state.layers, strict=True):
            x, after, shared = block.step(x, before, shared)  # type: ignore[operator]  # items of a ModuleList
            layers.append(after)
        return self.norm(x), ModelState(state.position + 1, state.document, tuple(layers))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: SeqmixCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a piece.

        Args:
            input_ids: (batch, time); or `inputs_embeds` (batch, time, dim).
            attention_mask: (batch, time), or with a cache (batch, all tokens so far); 0 is padding.
            past_key_values: the cache that an earlier piece returned; it is continued.
            use_cache: whether to return a cache.
            document_ids: (batch, time), documents packed in a row; nothing crosses their borders.
        """
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        time = embeddings.shape[1]
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        cache = past_key_values
        state = None if cache is None else cache.state
        mask = None if attention_mask is None else attention_mask[:, -time:].bool()
        keeps_state = use_cache or cache is not None
        if mask is not None and not padding_is_documents(mask, keeps_state, continues=state is not None):
            hidden, after = forward_padded(self.mix, embeddings, mask, state, document_ids)
        else:
            if mask is not None:
                document_ids = documents_of_mask(mask, document_ids)
            if state is not None and time == 1 and document_ids is None and input_ids is not None:
                hidden, after = self.step(input_ids[:, 0], state)
                hidden = hidden[:, None]
            else:
                hidden, after = self.mix(embeddings, state, document_ids=document_ids)
        if keeps_state:
            cache = SeqmixCache() if cache is None else cache
            cache.state, cache.seen = after, cache.seen + time
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)


class SeqmixForCausalLM(SeqmixPreTrainedModel, GenerationMixin):
    """A decoder language model over any mixers, with its head.

    `forward` and `generate` follow Hugging Face; `prefill` and `step` are the same model with its state as an
    argument and a result; `cost`, `receptive_field` and `path_length` say what it takes and how far it sees.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SeqmixConfig) -> None:
        super().__init__(config)
        self.model = SeqmixModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head:
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def _prepare_cache_for_generation(  # type: ignore[override]  # declared as bool, but None is returned there too
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = SeqmixCache()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: SeqmixCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool = True,
        loss_by_token: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and a loss where labels are given; other arguments as in `SeqmixModel.forward`.

        Args:
            labels: (batch, time), the tokens themselves; each position is scored on the next one.
            shift_labels: (batch, time), targets that are shifted already; -100 is left out of the mean.
            logits_to_keep: how many positions from the end get logits (0: all), or their indices.
            return_logits: False, with labels: only the loss is wanted, and the logits of all positions are never held.
            loss_by_token: with return_logits=False: the loss is (batch, time), 0 where a target is left out.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            document_ids,
        )
        hidden = outputs.last_hidden_state
        if not return_logits:
            targets = _shifted(labels) if shift_labels is None else shift_labels
            if targets is None:
                raise InputError("return_logits=False leaves nothing to return without labels: give labels")
            alone = self._loss_alone(hidden, targets, loss_by_token, **kwargs)
            return CausalLMOutputWithPast(loss=alone, logits=None, past_key_values=outputs.past_key_values)
        if loss_by_token:
            raise InputError("loss_by_token=True needs return_logits=False: with logits the loss is a mean")
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None or shift_labels is not None:
            shift_labels = None if shift_labels is None else shift_labels.contiguous()
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, shift_labels=shift_labels, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def _loss_alone(
        self,
        hidden: Tensor,
        targets: Tensor,
        by_token: bool,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        """As `loss_function` from logits gives it, without holding them."""
        if type(self.lm_head) is not nn.Linear or self.lm_head.bias is not None:
            # An adapter or a quantised head has a forward of its own.
            logits = self.lm_head(hidden)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
            losses = F.cross_entropy(wide, targets.flatten(), ignore_index=ignore_index, reduction="none")
            if by_token:
                return losses.view(targets.shape)
            count = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
            return losses.sum() / count
        weight = self.lm_head.weight
        if by_token:
            return linear_token_losses(hidden, weight, targets, ignore_index=ignore_index)
        return linear_cross_entropy(hidden, weight, targets, divisor=num_items_in_batch, ignore_index=ignore_index)

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ModelState:
        """The state before the first token; capacity bounds the states that grow."""
        device = self.device if device is None else device
        layers = tuple(
            block.init_state(batch, capacity, device=device, dtype=self.dtype if dtype is None else dtype)
            for block in self.model.layers
        )
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        return ModelState(count, count.clone(), layers)

    def prefill(
        self,
        input_ids: Tensor,
        state: ModelState | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
        all_logits: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Reads a piece (batch, time) that continues `state`.

        Returns:
            Logits of the last position (batch, vocab), or with `all_logits` of all (batch, time, vocab), and
            the state after the piece.
        """
        hidden, after = self.model.mix(
            self.model.embed_tokens(input_ids), state, document_ids=document_ids, capacity=capacity
        )
        return self.lm_head(hidden if all_logits else hidden[:, -1]), after

    def step(self, token_ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Logits (batch, vocab) after one more token (batch,), and the state; the given state is consumed."""
        hidden, after = self.model.step(token_ids, state)
        return self.lm_head(hidden), after

    def _around_blocks(self, positions: int) -> Cost:
        """Embedding, last norm and head."""
        dim, vocab = self.config.hidden_size, self.config.vocab_size
        tables = 1 if self.config.tie_word_embeddings else 2
        size = self.lm_head.weight.element_size()
        return Cost(
            product_flops=linear_flops(positions, dim, vocab),
            other_flops=6 * positions * dim,
            parameters=tables * dim * vocab
            + sum(p.numel() for module in (self.model.norm, self.model.embed_positions) for p in module.parameters()),
            bytes_moved=size * (dim * vocab + positions * (dim + vocab)),
        )

    def _blocks(self, cost_of: Callable[[Any], Cost]) -> Cost:
        """The costs of all blocks; of those that the config makes alike only the first is asked."""
        total, known = Cost(), dict[str, Cost]()
        for layer, block in enumerate(self.model.layers):
            kind = self.config.kind_of_layer(layer)
            if kind not in known:
                known[kind] = cost_of(block)
            total = total + known[kind]
        return total

    def cost(self, batch: int, time: int) -> Cost:
        """The cost of a forward pass over `batch` rows of `time` tokens, logits of all positions included."""
        around = self._around_blocks(batch * time) + Cost(state_bytes=batch * BOOKKEEPING_BYTES)
        return around + self._blocks(lambda block: block.cost(batch, time))

    def step_cost(self, batch: int, position: int) -> Cost:
        """The cost of one step with `position` tokens already read."""
        around = self._around_blocks(batch) + Cost(state_bytes=batch * BOOKKEEPING_BYTES)
        return around + self._blocks(lambda block: block.step_cost(batch, position))

    def training_flops(self, tokens: int, context: int) -> int:
        """Product FLOPs of training on `tokens` in rows of `context`: three forwards."""
        return 3 * self.cost(1, context).product_flops * tokens // context

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the embeddings (tokens, learned positions) and, where it has its own, the head's table."""
        tables = {id(self.model.embed_tokens.weight), id(self.lm_head.weight)}
        tables.update(id(parameter) for parameter in self.model.embed_positions.parameters())
        return sum(parameter.numel() for parameter in self.parameters() if id(parameter) not in tables)

    @property
    def longest_context(self) -> int | None:
        """How many positions the model can tell apart at most; None for no bound."""
        return self.model.embed_positions.longest

    @property
    def mixers(self) -> list[Mixer]:
        """All mixers between positions, first layer first; those in a feed-forward's place are among them."""
        return [mixer for block in self.model.layers for mixer in block.mixers]

    @property
    def receptive_field(self) -> int | None:
        """The span in tokens that one output can depend on, itself included; None where it is unbounded."""
        return receptive_field(self.mixers)

    @property
    def positions_seen(self) -> int | None:
        """How many tokens of the receptive field can really reach the output; None where it is unbounded."""
        return positions_seen(self.mixers)

    def to_huggingface(self) -> PreTrainedModel:
        """The Hugging Face model (Llama, Mamba-2 or LFM2) with these weights; see `seqmix.models.convert`."""
        from seqmix.models.convert import to_huggingface

        return to_huggingface(self)

    def path_length(self, distance: int) -> int | None:
        """The fewest mixers through which a token `distance` positions back can reach the output; None if it cannot."""
        return path_length(self.mixers, distance)
