"""Speed and memory, measured beside what else is installed.

`timing.py` lets sides take turns so that a machine that changes its speed does so for all of them, `floors.py`
measures what the machine can do at best, the other files each hold one of the commands of `seqmix bench`.
"""

from seqmix.bench.timing import Quartiles, busy_warning, environment, quartiles, ratio, take_turns, with_threads

__all__ = ["Quartiles", "busy_warning", "environment", "quartiles", "ratio", "take_turns", "with_threads"]
