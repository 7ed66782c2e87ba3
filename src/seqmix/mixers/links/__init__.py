"""Patterns of links, in Python and as text: who listens to whom in sparse attention."""

from seqmix.mixers.links.pattern import Pattern, bigbird, full, global_, longformer, random, window
from seqmix.mixers.links.text import parse_pattern

__all__ = ["Pattern", "bigbird", "full", "global_", "longformer", "parse_pattern", "random", "window"]
