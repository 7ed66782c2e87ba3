"""Position information as a choice of the model: what is added to the embedding, and what the presets make of it."""

from __future__ import annotations

import math

import pytest
import torch

from seqmix import create_model
from seqmix.errors import InputError
from seqmix.models import SeqmixForCausalLM
from seqmix.models.positions import PositionEmbedding

KINDS = ["none", "learned", "sinusoidal", "rope"]


def tiny(kind: str, preset: str = "transformer") -> SeqmixForCausalLM:
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 2, "position": kind}
    return create_model(preset, vocab_size=11, context=24, **options).double().eval()


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_are_the_papers(width: int) -> None:
    config = create_model(
        "gated_conv", vocab_size=5, context=16, hidden_size=width, num_hidden_layers=1, position="sinusoidal"
    ).config
    embed = PositionEmbedding(config)
    positions = torch.tensor([[0, 1, 5, 1000]])
    given = torch.zeros(1, 4, width, dtype=torch.float64)
    added = embed(given, positions)[0]
    for row, position in enumerate([0, 1, 5, 1000]):
        for channel in range(width):
            angle = position / 10000 ** (2 * (channel // 2) / (width + width % 2))
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert float(added[row, channel]) == pytest.approx(config.initializer_range * expected, abs=1e-12)


@pytest.mark.parametrize("preset", ["transformer", "gated_conv"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_pieces_and_documents_agree_with_the_whole(kind: str, preset: str) -> None:
    model = tiny(kind, preset)
    ids = torch.randint(0, 11, (2, 13))
    whole, _ = model.prefill(ids, all_logits=True)
    first, state = model.prefill(ids[:, :6], all_logits=True)
    outputs = [first]
    for index in range(6, 13):
        logits, state = model.step(ids[:, index], state)
        outputs.append(logits[:, None])
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    documents = torch.tensor([[0] * 5 + [1] * 8] * 2)
    packed, _ = model.prefill(ids, document_ids=documents, all_logits=True)
    torch.testing.assert_close(packed[:, 5:], model.prefill(ids[:, 5:], all_logits=True)[0])


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rope"])
def test_a_position_changes_what_a_sum_cannot_tell(kind: str) -> None:
    """Attention without positions gives the last token the same whatever order the others have."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = ids[:, [3, 1, 0, 2, 4, 5]]

    def last(kind: str, ids: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        options = {"hidden_size": 16, "num_hidden_layers": 1, "position": kind}
        model = create_model("transformer", vocab_size=11, context=24, **options).double().eval()
        return model.prefill(ids)[0]

    torch.testing.assert_close(last("none", ids), last("none", other))
    assert not torch.allclose(last(kind, ids), last(kind, other), rtol=1e-6, atol=1e-9)


def test_a_position_beyond_the_learned_ones_is_named() -> None:
    model = tiny("learned")
    with pytest.raises(InputError, match="position 24 was reached, but the model has learned 24 positions"):
        model.prefill(torch.zeros(1, 25, dtype=torch.int64))


def test_learned_positions_count_as_embedding() -> None:
    with_table, without = tiny("learned"), tiny("none")
    assert with_table.non_embedding_parameters == without.non_embedding_parameters
    assert with_table.num_parameters() - without.num_parameters() == 24 * 16
    assert with_table.cost(1, 8).parameters == with_table.num_parameters()


def test_attention_takes_its_own_positions() -> None:
    config = tiny("rope").config
    assert (config.embedding_position, config.mixer_of_layer(0)["rope"]) == ("none", True)
    config = tiny("sinusoidal").config
    assert (config.embedding_position, config.mixer_of_layer(0)["rope"]) == ("sinusoidal", False)
    assert tiny("rope", "gated_conv").config.embedding_position == "rope"


def test_alibi_needs_attention() -> None:
    with pytest.raises(InputError, match="gated_conv has no layer of attention"):
        tiny("alibi", "gated_conv")


def test_an_unknown_position_names_the_nearest() -> None:
    with pytest.raises(InputError, match="sinusoidal"):
        tiny("sinusoid")
