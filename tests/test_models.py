"""The language model of every preset: one sequence read whole, in pieces, token by token, packed and padded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.models import SeqmixForCausalLM, create_model, list_models
from seqmix.models.padding import documents_of_mask
from seqmix.properties.paths import dependencies

VOCAB = 50


def tiny(name: str) -> SeqmixForCausalLM:
    torch.manual_seed(0)
    model = create_model(name, vocab_size=VOCAB, context=32, hidden_size=16, num_hidden_layers=3)
    return model.double().eval()


def tokens(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list_models())
def model(request: pytest.FixtureRequest) -> SeqmixForCausalLM:
    return tiny(request.param)


@torch.no_grad()
def test_steps_pieces_and_whole_agree(model: SeqmixForCausalLM) -> None:
    ids = tokens(2, 21)
    whole = model(ids).logits
    state = model.init_state(2)
    stepped = []
    for position in range(21):
        logits, state = model.step(ids[:, position], state)
        stepped.append(logits)
    torch.testing.assert_close(torch.stack(stepped, dim=1), whole)
    first, state = model.prefill(ids[:, :8], all_logits=True)
    second, state = model.prefill(ids[:, 8:], state, all_logits=True)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    assert state.position.tolist() == [21, 21]


@torch.no_grad()
def test_packed_documents_equal_separate_ones(model: SeqmixForCausalLM) -> None:
    ids = tokens(1, 20)
    documents = torch.tensor([[3] * 7 + [9] * 12 + [3]])
    packed = model(ids, document_ids=documents).logits
    separate = [model(ids[:, start:end]).logits for start, end in ((0, 7), (7, 19), (19, 20))]
    torch.testing.assert_close(packed, torch.cat(separate, dim=1))


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
def test_padding_changes_nothing(model: SeqmixForCausalLM, side: str, use_cache: bool) -> None:
    ids = tokens(2, 12)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, {"left": [0, 1, 2], "right": [10, 11], "both": [0, 11], "inside": [4, 5, 8]}[side]] = 0
    kept = mask[1].bool()
    padded = model(ids, attention_mask=mask, use_cache=use_cache)
    alone = model(ids[1:, kept]).logits[0]
    torch.testing.assert_close(padded.logits[0], model(ids[:1]).logits[0])
    torch.testing.assert_close(padded.logits[1, kept], alone)
    if use_cache:
        more = tokens(2, 3, seed=1)
        longer = torch.cat([mask, torch.tensor([[1, 1, 1], [0, 1, 1]])], dim=1)
        continued = model(more, attention_mask=longer, past_key_values=padded.past_key_values).logits
        whole = model(torch.cat([ids[1:, kept], more[1:, 1:]], dim=1)).logits[0]
        torch.testing.assert_close(continued[1, 1:], whole[-2:])


@torch.no_grad()
def test_a_continued_cache_may_be_fed_in_any_pieces(model: SeqmixForCausalLM) -> None:
    ids = tokens(2, 15)
    whole = model(ids).logits
    outputs, cache = [], None
    for piece in ids.split([6, 1, 1, 5, 2], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        outputs.append(output.logits)
        cache = output.past_key_values
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    assert cache is not None
    assert cache.get_seq_length() == 15


@torch.no_grad()
def test_rows_of_a_state_can_be_picked_and_joined(model: SeqmixForCausalLM) -> None:
    ids = tokens(3, 9)
    _, state = model.prefill(ids)
    _, longer = model.prefill(tokens(1, 14, seed=2))
    rows = torch.tensor([2, 0])
    joined = state.select(rows).cat(longer)
    following = tokens(3, 1, seed=3)[:, 0]
    logits, _ = model.step(following, joined)
    for row, prefix in enumerate((ids[2], ids[0], tokens(1, 14, seed=2)[0])):
        alone = model(torch.cat([prefix, following[row : row + 1]])[None]).logits[0, -1]
        torch.testing.assert_close(logits[row], alone)


def test_cost_counts_parameters_and_state(model: SeqmixForCausalLM) -> None:
    assert model.cost(2, 32).parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.init_state(2, capacity=32).nbytes == model.cost(2, 32).state_bytes
    # Each row costs as much as another; what comes besides is done once, such as the making of a long filter.
    one, two, four = (model.cost(batch, 32).product_flops for batch in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert two <= 2 * one


def test_receptive_field_is_where_the_gradient_ends(model: SeqmixForCausalLM) -> None:
    """The span is exact for convolutions and windows, and the positions seen are those with a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            # RWKV's projections begin at zero, which no gradient passes.
            parameter.add_(0.1 * torch.randn_like(parameter))
    span = model.receptive_field
    time = 40 if span is None else span + 3
    embeddings = torch.randn(1, time, 16, dtype=torch.float64, requires_grad=True)
    hidden, _ = model.model.mix(embeddings)
    (gradient,) = torch.autograd.grad(hidden[0, -1].square().sum(), embeddings)
    seen = torch.nonzero(gradient[0].abs().sum(dim=1)).flatten()
    if span is None:
        reached = torch.eye(time, dtype=torch.bool)
        for mixer in model.mixers:
            reached = (dependencies(mixer, time).float() @ reached.float()) > 0
        assert seen.tolist() == reached[-1].nonzero().flatten().tolist()
        assert model.positions_seen is None
        assert model.path_length(39) in (1, 2, 3, None)
    else:
        assert int(seen[0]) == time - span
        assert len(seen) == model.positions_seen
        assert model.path_length(span - 1) == 3
        assert model.path_length(span) is None


def test_loss_of_shifted_labels_is_that_of_labels(model: SeqmixForCausalLM) -> None:
    ids = tokens(2, 10)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    torch.testing.assert_close(model(ids, labels=ids).loss, model(ids, shift_labels=shifted).loss)


def test_post_norm_and_layer_norm_build_and_step() -> None:
    torch.manual_seed(0)
    model = create_model(
        "gated_conv",
        vocab_size=VOCAB,
        context=32,
        hidden_size=16,
        num_hidden_layers=2,
        norm="layer",
        norm_position="post",
        mixers=[{"name": "pool"}, {"name": "dense", "max_length": 32}],
        feed_forward=[0, 24],
    ).double()
    ids = tokens(1, 6)
    state = model.init_state(1)
    for position in range(6):
        logits, state = model.step(ids[:, position], state)
    torch.testing.assert_close(logits, model(ids).logits[:, -1])


def test_mask_without_padding_leaves_documents_alone() -> None:
    documents = torch.tensor([[1, 1, 2]])
    assert documents_of_mask(torch.ones(1, 3, dtype=torch.bool), documents) is documents


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixerz": []}, "did you mean 'mixers'"),
        ({"norm": "rmss"}, "did you mean 'rms'"),
        ({"mixers": [{"name": "atention"}]}, "did you mean 'attention'"),
        ({"mixers": [{"name": "attention", "head": 2}]}, "did you mean 'heads'"),
        ({"feed_forward": [1, 2]}, "feed_forward has 2 widths"),
    ],
)
def test_bad_options_name_the_remedy(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_model("transformer", vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3, **options)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'transformer'"):
        create_model("transfomer", vocab_size=VOCAB)
