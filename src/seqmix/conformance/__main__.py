"""`python -m seqmix.conformance NAME ... [--only CHECK]`: the checks of `seqmix check`, without its dependencies."""

from __future__ import annotations

import argparse
import sys

from seqmix.conformance.kit import check_mixer
from seqmix.conformance.targets import find_mixers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m seqmix.conformance", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="a name, module:Class or file.py:Class; every mixer where none is given"
    )
    parser.add_argument("--only", action="append", help="the name of a check; may be repeated")
    arguments = parser.parse_args()
    failed = 0
    for name, mixer_class in find_mixers(arguments.names).items():
        for result in check_mixer(mixer_class, checks=arguments.only):
            failed += result.status == "failed"
            line = f"{result.status:16} {name:16} {result.check:28} {result.example}  {result.message}"
            sys.stdout.write(line.rstrip() + "\n")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
