"""llama.cpp as a peer in benchmarks: models of random weights in GGUF files, and its C API one token at a time.

Needs the packages gguf and llama-cpp-python; they are no dependencies of seqmix. The models have a vocabulary without
text, as nothing is ever decoded. llama.cpp runs as it comes: its cache of keys and values is float16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 258
LLAMA = {"width": 288, "depth": 8, "heads": 9, "feed_forward": 768}
"""7.96 M parameters without the embedding; all sizes are multiples of 32, which llama.cpp likes."""
MAMBA2 = {"width": 320, "depth": 12, "state": 64, "head_dim": 64}
"""7.96 M parameters without the embedding, the shape of seqmix's own preset of that size."""
CONTEXT_ROOM = 64
"""Positions beyond the longest context, for the steps that are timed there."""


def _writer(path: Path, architecture: str, width: int, depth: int) -> Any:
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(depth)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    return writer


def _drawn(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _put(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    """Adds a tensor; matrices in the type `kind`, "f32", "bf16" or "q8_0"."""
    import gguf

    if values.ndim < 2 or kind == "f32" or min(values.shape) < 32:
        writer.add_tensor(name, values)
        return
    stored = getattr(gguf.GGMLQuantizationType, kind.upper())
    writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(path: Path, kind: str = "f32") -> int:
    """Writes a Llama of random weights; gives its parameters without the embedding."""
    width, depth, feed_forward = LLAMA["width"], LLAMA["depth"], LLAMA["feed_forward"]
    random = np.random.default_rng(0)
    writer = _writer(path, "llama", width, depth)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(LLAMA["heads"])
    writer.add_head_count_kv(LLAMA["heads"])
    writer.add_rope_dimension_count(width // LLAMA["heads"])
    _put(writer, "token_embd.weight", _drawn(random, VOCABULARY, width), kind)
    _put(writer, "output_norm.weight", np.ones(width, np.float32), kind)
    for layer in range(depth):
        name = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            _put(writer, f"{name}.{norm}.weight", np.ones(width, np.float32), kind)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            _put(writer, f"{name}.{part}.weight", _drawn(random, width, width), kind)
        _put(writer, f"{name}.ffn_gate.weight", _drawn(random, feed_forward, width), kind)
        _put(writer, f"{name}.ffn_up.weight", _drawn(random, feed_forward, width), kind)
        _put(writer, f"{name}.ffn_down.weight", _drawn(random, width, feed_forward), kind)
    _finish(writer)
    return depth * (4 * width * width + 3 * width * feed_forward)


def write_mamba2(path: Path, kind: str = "f32") -> int:
    """Writes a Mamba-2 of random weights; gives its parameters without the embedding."""
    width, depth, state = MAMBA2["width"], MAMBA2["depth"], MAMBA2["state"]
    inner = 2 * width
    heads = inner // MAMBA2["head_dim"]
    channels = inner + 2 * state
    random = np.random.default_rng(0)
    writer = _writer(path, "mamba2", width, depth)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(1)
    _put(writer, "token_embd.weight", _drawn(random, VOCABULARY, width), kind)
    _put(writer, "output_norm.weight", np.ones(width, np.float32), kind)
    for layer in range(depth):
        name = f"blk.{layer}"
        _put(writer, f"{name}.attn_norm.weight", np.ones(width, np.float32), kind)
        _put(writer, f"{name}.ssm_in.weight", _drawn(random, inner + channels + heads, width), kind)
        _put(writer, f"{name}.ssm_conv1d.weight", _drawn(random, channels, 4), kind)
        _put(writer, f"{name}.ssm_conv1d.bias", np.zeros(channels, np.float32), kind)
        _put(writer, f"{name}.ssm_dt.bias", np.full(heads, -3, np.float32), kind)
        _put(writer, f"{name}.ssm_a", -np.ones((heads, 1), np.float32), kind)
        _put(writer, f"{name}.ssm_d", np.ones((heads, 1), np.float32), kind)
        _put(writer, f"{name}.ssm_norm.weight", np.ones((1, inner), np.float32), kind)
        _put(writer, f"{name}.ssm_out.weight", _drawn(random, width, inner), kind)
    _finish(writer)
    return depth * (width * (inner + channels + heads) + inner * width)


class LlamaCpp:
    """A loaded model with one sequence.

    Args:
        path: of the GGUF file. threads: of decode and prefill. context: the longest one that is read.
    """

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        # Its notes on loading, one line a tensor, are of no use here.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context + CONTEXT_ROOM
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._batch = options.n_batch
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._token = (llama_cpp.llama_token * 1)(1)
        self.logits_of_last_step()

    def logits_of_last_step(self) -> Any:
        """A pointer to the logits; reading them is a part of every step."""
        return self._api.llama_get_logits(self._context)

    def read(self, tokens: Sequence[int]) -> None:
        """Reads a prompt from the beginning."""
        self._api.llama_memory_clear(self._memory, True)
        for first in range(0, len(tokens), self._batch):
            piece = tokens[first : first + self._batch]
            self._decode((self._api.llama_token * len(piece))(*piece), len(piece))

    def stand(self, position: int) -> None:
        """Forgets what was read from a position on; only where the memory is a cache of keys and values."""
        self._api.llama_memory_seq_rm(self._memory, 0, position, -1)

    def step(self, token: int) -> int:
        """Reads one more token; gives the likeliest next one."""
        self._token[0] = token
        self._decode(self._token, 1)
        logits = np.ctypeslib.as_array(self.logits_of_last_step(), shape=(VOCABULARY,))
        return int(logits.argmax())

    def _decode(self, tokens: Any, count: int) -> None:
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, count))
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")

    def close(self) -> None:
        """Frees context and model."""
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)
