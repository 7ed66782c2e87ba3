"""The conformance kit: checks that any mixer, ours or a stranger's, keeps the contract of `seqmix.mixer`.

    from seqmix.conformance import check_mixer, parametrize_with_checks

    for result in check_mixer(MyMixer):
        print(result.check, result.example, result.status, result.message)

Every check puts two answers of the mixer beside each other, or one beside the gradient, the counter or memory.
The oracle is the mixer's own float64 deep copy. Tolerances follow from the precision, the length of the sums and
the size of the values (`subject.rounding`); no mixer has its own. Mixers are built from `Mixer.examples()`.
"""

from __future__ import annotations

from seqmix.conformance.exceptions import EXCEPTIONS
from seqmix.conformance.kit import CHECKS, CheckResult, check_mixer, parametrize_with_checks, run_checks, summarize

__all__ = ["CHECKS", "EXCEPTIONS", "CheckResult", "check_mixer", "parametrize_with_checks", "run_checks", "summarize"]
