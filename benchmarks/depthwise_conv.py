"""The depthwise convolution beside torch's conv1d, with each instruction set that the processor has.

    python benchmarks/depthwise_conv.py [--threads 2] [--rounds 15] [--quick] [--json] [--out FILE]

Runs `seqmix bench kernels` at (batch 8, time 1024, dim 512) with kernel 32 in a process for each instruction set
(SEQMIX_ISA limits the compiled kernels) and prints the ratios beside what they must reach; see `seqmix.bench.kernels`
for what is compared, how results are checked first, and what the floor is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from shared import Goal, arguments, finish

from seqmix.bench.kernels import PEER
from seqmix.kernels.library import INSTRUCTION_SETS, instruction_set, library, why_missing

SIZES = "8x1024x512:32:1,8x1024x512:32:8"
QUICK = "2x128x64:32:1,2x128x64:32:8"
FASTER_AIM = {1: 17.0, 8: 30.0}
"""By dilation."""


def measure(isa: str, options: list[str]) -> dict[str, Any]:
    """The document of `seqmix bench kernels` with an instruction set."""
    command = [sys.executable, "-m", "seqmix", "bench", "kernels", "--json", *options]
    environment = {**os.environ, "SEQMIX_ISA": isa}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def goals(isa: str, document: dict[str, Any], implementation: str) -> list[Goal]:
    """What must be reached, by an implementation with an instruction set."""
    found = []
    for row in document["rows"]:
        if row["implementation"] != implementation:
            continue
        dilation = row["size"]["dilation"]
        what = f"{isa}, d {dilation}: {row['pass'].replace('and', '+')}"
        if row["pass"] == "forward and backward":
            faster = row["faster_than"].get(PEER, {}).get("median")
            found.append(Goal(what=f"{what}, conv1d", value=faster, at_least=12, aim=FASTER_AIM[dilation]))
            # There is no lower bound for this one beside the aim.
            share = row["share_of_floor"]["median"]
            found.append(Goal(what=f"{what}, of floor", value=share, at_least=0.7, aim=0.7, unit="%"))
        elif row["pass"] in ("forward", "weight gradient"):
            share = row["share_of_product"]["median"]
            found.append(Goal(what=f"{what}, of product", value=share, at_least=0.6, aim=0.95, unit="%"))
    return found


def main() -> None:
    given = arguments("The depthwise convolution beside torch's conv1d.").parse_args()
    options = ["--sizes", QUICK if given.quick else SIZES, "--rounds", str(given.rounds or (3 if given.quick else 15))]
    if given.threads:
        options += ["--threads", str(given.threads)]
    if library() is None:
        sets, implementation = ["none"], "seqmix torch"
        print(f"without compiled kernels ({why_missing()}), the form in plain torch is measured", file=sys.stderr)
    else:
        widest = INSTRUCTION_SETS.index(instruction_set())
        sets, implementation = list(INSTRUCTION_SETS[min(1, widest) : widest + 1]), "seqmix native"
    documents = {isa: measure(isa, options) for isa in sets}
    found = [goal for isa, document in documents.items() for goal in goals(isa, document, implementation)]
    last = documents[sets[-1]]
    machine = f"{last['environment']['hardware']['processor']}, threads: {last['settings']['threads']}"
    lines = [
        f"{machine}; d: dilation; floor: the arithmetic at the matrix product's rate and the tensors at the memory's.",
        *dict.fromkeys(sentence for document in documents.values() for sentence in document["busy"]),
    ]
    finish(given, found, {"instruction_sets": documents}, lines)


if __name__ == "__main__":
    main()
