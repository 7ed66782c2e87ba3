"""A causal language model of Hugging Face with the calls that seqmix trains, measures and compares a model by.

The model inside is transformers' own class, built from its config with new weights; it is saved and opened as such.
Documents are told apart where the model really does so (see `behaviour.py`), by positions that begin anew.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.models.huggingface.behaviour import Behaviour, behaviour_of
from seqmix.models.huggingface.configs import new_model, quiet
from seqmix.models.huggingface.costs import Counts, counts_of, nbytes, run

_IGNORED = -100


class Output(NamedTuple):
    """What forward returns: the loss where targets are given, and the logits where they are wanted."""

    loss: Tensor | None
    logits: Tensor | None


@dataclass
class HuggingFaceState:
    """The cache that the model made, and how many tokens it has read."""

    cache: Any
    read: int

    def clone(self) -> HuggingFaceState:
        """A copy that `step` can write into while this one stays as it is."""
        return HuggingFaceState(copy.deepcopy(self.cache), self.read)

    @property
    def nbytes(self) -> int:
        """The bytes of the cache's tensors."""
        return nbytes(self.cache)


class HuggingFaceModel(nn.Module):
    """`inner` is the model of transformers, for the given config, with new weights unless it is given.

    The receptive field and the path length of such a model are not known: None, with `is_reach_known` False.
    """

    is_reach_known = False
    receptive_field = None
    positions_seen = None

    def __init__(self, config: PreTrainedConfig, inner: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.inner = new_model(config) if inner is None else inner

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the model inside."""
        return self.inner.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.inner.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.inner.dtype

    @property
    def behaviour(self) -> Behaviour:
        """What the model does with documents and its cache."""
        return behaviour_of(self.config)

    @property
    def counts(self) -> Counts:
        """What it costs, for one row."""
        return counts_of(self.config, self.dtype)

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, first to last: the first list of as many modules as the config has layers."""
        depth = self.config.num_hidden_layers
        for module in self.inner.modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return list(module)
        return []

    @property
    def longest_context(self) -> int | None:
        """The most tokens that a table of learned positions takes; None where there is no such table."""
        return self.config.max_position_embeddings if self._position_tables else None

    @property
    def _position_tables(self) -> list[nn.Embedding]:
        """The tables of learned positions: those of a row for each position of the config, or two more as OPT's."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return [
            module
            for module in self.inner.modules()
            if isinstance(module, nn.Embedding)
            and module is not self.inner.get_input_embeddings()
            and isinstance(limit, int)
            and limit <= module.num_embeddings <= limit + 2
        ]

    def forward(
        self,
        input_ids: Tensor,
        shift_labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        use_cache: bool = False,
        return_logits: bool = True,
        loss_by_token: bool = False,
    ) -> Output:
        """As `SeqmixForCausalLM.forward`, without a cache.

        Args:
            document_ids: (batch, time); without effect on a model that does not tell documents apart.
        """
        extra: dict[str, Any] = {}
        if document_ids is not None and self.behaviour.separates_documents:
            extra["position_ids"] = _offsets(document_ids)
        with quiet():
            logits = self.inner(input_ids=input_ids, use_cache=False, **extra).logits
        loss = None
        if shift_labels is not None:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
            reduction = "none" if loss_by_token else "mean"
            loss = F.cross_entropy(wide, shift_labels.flatten(), ignore_index=_IGNORED, reduction=reduction)
            loss = loss.view(shift_labels.shape) if loss_by_token else loss
        return Output(loss, logits if return_logits else None)

    def prefill(
        self,
        input_ids: Tensor,
        state: HuggingFaceState | None = None,
        *,
        capacity: int | None = None,
        all_logits: bool = False,
    ) -> tuple[Tensor, HuggingFaceState]:
        """Reads a piece (batch, time) that continues `state`, which is consumed; logits as in `SeqmixForCausalLM`.

        Raises:
            InputError: a piece of several tokens continues a state and the model cannot do that.
        """
        before = None if state is None else state.cache
        if before is not None and input_ids.shape[1] > 1 and not self.behaviour.continues:
            raise InputError(
                f"a {self.config.model_type} of Hugging Face cannot read a piece of {input_ids.shape[1]} tokens after "
                "others: read the whole text at once"
            )
        with quiet():
            logits, after = run(self.inner, input_ids, before, last_alone=not all_logits)
        read = input_ids.shape[1] + (0 if state is None else state.read)
        return logits if all_logits else logits[:, -1], HuggingFaceState(after, read)

    def step(self, token_ids: Tensor, state: HuggingFaceState) -> tuple[Tensor, HuggingFaceState]:
        """Logits (batch, vocab) after one more token (batch,), and the state; the given one is consumed."""
        return self.prefill(token_ids[:, None], state)

    def cost(self, batch: int, time: int) -> Cost:
        """The cost of a forward pass over `batch` rows of `time` tokens; see `costs.py` for what is counted."""
        return self.counts.cost(batch, time)

    def step_cost(self, batch: int, position: int) -> Cost:
        """The cost of one step with `position` tokens already read."""
        return self.counts.step_cost(batch, position)

    def training_flops(self, tokens: int, context: int) -> int:
        """Product FLOPs of training on `tokens` in rows of `context`: three forwards."""
        return 3 * self.cost(1, context).product_flops * tokens // context

    @property
    def has_growing_state(self) -> bool:
        """Whether some of the cache grows without end."""
        return self.counts.grows

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the tables of the embedding, of learned positions and of the head."""
        layers = (self.inner.get_input_embeddings(), self.inner.get_output_embeddings(), *self._position_tables)
        tables = {id(layer.weight) for layer in layers if layer is not None}
        return sum(parameter.numel() for parameter in self.parameters() if id(parameter) not in tables)

    def path_length(self, distance: int) -> int | None:
        """Not known."""
        return None

    def state_bytes(self, batch: int, context: int) -> int:
        """The bytes of the cache after `context` tokens, by the formula of `costs.py`."""
        return batch * self.counts.state_bytes(context)

    def no_decay(self) -> set[str]:
        """What weight decay must leave alone beside biases and norms: the decays and steps of state spaces."""
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name.rpartition(".")[2] in ("A_log", "D", "dt_bias")}

    def tie_weights(self) -> None:
        """Makes the head's table the embedding's again, where the config says so."""
        self.inner.tie_weights()

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model inside as transformers does; `AutoModelForCausalLM` opens it."""
        self.inner.save_pretrained(folder)


def _offsets(document_ids: Tensor) -> Tensor:
    """(batch, time): the position of each token within its document."""
    steps = torch.arange(document_ids.shape[1], device=document_ids.device).expand(document_ids.shape)
    begins = torch.zeros_like(steps)
    begins[:, 1:] = torch.where(document_ids[:, 1:] != document_ids[:, :-1], steps[:, 1:], 0)
    return steps - begins.cummax(dim=1).values
