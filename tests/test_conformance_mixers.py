"""Every registered mixer keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seqmix.conformance import parametrize_with_checks
from seqmix.conformance.numerics import compiles
from seqmix.conformance.subject import Subject
from seqmix.mixer import Mixer
from seqmix.mixers import list_mixers, mixer_class

MIXERS = [mixer_class(name) for name in list_mixers()]


@parametrize_with_checks(MIXERS)
def test_the_mixer_keeps_the_contract(mixer_class: type[Mixer], check: Callable[[type[Mixer]], None]) -> None:
    check(mixer_class)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
# Long convolutions: it leaves Fourier transforms to the library and says so.
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_mixer_compiles_with_inductor(mixer: type[Mixer]) -> None:
    dim, options = mixer.examples()[0]
    compiles(Subject(mixer, dim, options), backend="inductor")
