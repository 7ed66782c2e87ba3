"""Softmax attention on any pattern of links."""

from seqmix.mixers.attention.attention import Attention
from seqmix.mixers.attention.config import AttentionConfig

__all__ = ["Attention", "AttentionConfig"]
