"""The presets whose step is known as a list of operations, and those that torch alone can run."""

from __future__ import annotations

import seqmix
from seqmix.export.lowering import CannotLowerError, lower
from seqmix.models import list_models


def _is_lowerable(preset: str) -> bool:
    size = {"hidden_size": 16, "num_hidden_layers": 3}
    try:
        lower(seqmix.create_model(preset, vocab_size=5, context=32, **size))
    except CannotLowerError:
        return False
    return True


LOWERABLE = [preset for preset in list_models() if _is_lowerable(preset)]
OTHERS = [preset for preset in list_models() if preset not in LOWERABLE]
