"""The failures that are known and accepted, each with its reason.

An entry whose check passes for every example is itself a failure, so that none outlives its reason.
"""

from __future__ import annotations

from collections.abc import Mapping

EXCEPTIONS: Mapping[tuple[str, str], str] = {}
"""(module:Class, check) -> reason."""
