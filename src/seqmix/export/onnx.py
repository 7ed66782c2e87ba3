"""One model as an ONNX file that needs nothing of seqmix, compared with torch before it is written.

    logits, S.new, ... = step(token, S, ...)       S.new goes in as S with the next token

The inputs and outputs are those of the standalone form in `graph.py`; `empty_states` says what they are at first, and
the file's metadata under "seqmix.states" says the same to other programs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqmix.errors import SeqmixError, unknown_name
from seqmix.export.graph import build_graph
from seqmix.export.lowering import lower
from seqmix.models import SeqmixForCausalLM

STATES_KEY = "seqmix.states"
STEPS_COMPARED = 48
"""Tokens that the file and torch both read before it is kept; windows and rings of small models are full by then."""
FLOAT32_ROUNDING = 2.0**-24
ROUNDINGS = 64.0
"""How many roundings of the largest logit, times the layers, the two may differ by: both sum in their own order."""
INT8_DIFFERENCE = 0.05
"""With int8 the runtime also rounds what it multiplies, each number to 1/254 of the largest of its block at most."""


def standalone_graph(model: SeqmixForCausalLM, weights: str = "f32") -> Any:
    """The ONNX model (a ModelProto) of a model's step, with its states described in the metadata.

    Args:
        weights: "f32" or "int8".

    Raises:
        InputError: another weight type, or a mixer for which no nodes are known.
    """
    if weights not in ("f32", "int8"):
        raise unknown_name("weight type of an ONNX file", weights, ("f32", "int8"))
    graph = build_graph(lower(model), int8=weights == "int8", standalone=True)
    states = {
        entry.name: [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
        for entry in graph.graph.input
        if entry.name not in ("token", "position")
    }
    graph.metadata_props.add(key=STATES_KEY, value=json.dumps(states))
    return graph


def empty_states(session: Any) -> dict[str, NDArray[np.float32]]:
    """What goes in with the first token, for a session of ONNX Runtime."""
    shapes = json.loads(session.get_modelmeta().custom_metadata_map[STATES_KEY])
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def run_step(
    session: Any, token: int, position: int, states: Mapping[str, NDArray[np.float32]]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Logits (vocab,) and the states after one token; nothing that is given is changed."""
    feeds: dict[str, Any] = {"token": np.array([token]), **states}
    if any(entry.name == "position" for entry in session.get_inputs()):
        feeds["position"] = np.array([position])
    names = [entry.name for entry in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    return found.pop("logits")[0], {name.removesuffix(".new"): value for name, value in found.items()}


def export_onnx(model: SeqmixForCausalLM, path: str | os.PathLike[str], *, weights: str = "f32") -> None:
    """Writes a model's step as an ONNX file once ONNX Runtime has given the same logits as torch.

    Args:
        model: in evaluation mode. path: of the file; it is replaced in one go.

    Raises:
        InputError: see `standalone_graph`.
        SeqmixError: the two differ by more than rounding; nothing is written then.
    """
    content = standalone_graph(model, weights).SerializeToString()
    _compare(model, content, weights)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        raise SeqmixError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@torch.inference_mode()
def _compare(model: SeqmixForCausalLM, content: bytes, weights: str) -> None:
    """Lets both read the same random tokens, each from its own states."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    states = empty_states(session)
    state = model.init_state(1)
    tokens = torch.randint(
        model.config.vocab_size, (STEPS_COMPARED,), generator=torch.Generator().manual_seed(0), device="cpu"
    )
    depth = model.config.num_hidden_layers
    share = INT8_DIFFERENCE * depth if weights == "int8" else ROUNDINGS * depth * FLOAT32_ROUNDING
    for position, token in enumerate(tokens.tolist()):
        found, states = run_step(session, token, position, states)
        logits, state = model.step(torch.tensor([token], device=model.device), state)
        right = logits[0].float().cpu().numpy()
        difference, limit = float(np.abs(found - right).max()), share * float(np.abs(right).max())
        if not difference <= limit:
            raise SeqmixError(
                f"the ONNX file differs from torch by {difference:.2g} at position {position}, more than {limit:.2g}: "
                "report this model's config as a fault of seqmix"
            )
