"""Recurrences through gates and products, whose matrix is the Jacobian."""

from seqmix.mixers.recurrent.lstm import LSTM

__all__ = ["LSTM"]
