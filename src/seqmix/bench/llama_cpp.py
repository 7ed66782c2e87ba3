"""llama.cpp beside seqmix: the weights of a model of Hugging Face in a GGUF file, read by llama-cpp-python.

Needs the packages gguf and llama-cpp-python. `llama.cpp-llama` and `llama.cpp-mamba2` have the weights of `hf-llama`
and `hf-mamba2` in float32, and a vocabulary without text. llama.cpp runs as it comes: its cache of keys and values is
float16.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from seqmix.bench.decoders import Decoder
from seqmix.bench.peers import is_installed
from seqmix.errors import SeqmixError

MODELS = {"llama.cpp-llama": "hf-llama", "llama.cpp-mamba2": "hf-mamba2"}
"""Whose weights each of them takes."""

LONGEST = 1 << 20


def is_available() -> bool:
    """Whether both packages are installed."""
    return is_installed("gguf") and is_installed("llama_cpp")


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """Writes a Llama, an LFM2 or a Mamba-2 of transformers as llama.cpp expects it, in float32."""
    import gguf

    config: Any = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_context_length(LONGEST)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    eps = {"llama": "rms_norm_eps", "lfm2": "norm_eps", "mamba2": "layer_norm_epsilon"}[kind]
    writer.add_layer_norm_rms_eps(getattr(config, eps))
    writer.add_tokenizer_model("no_vocab")
    if kind == "mamba2":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.expand * config.hidden_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.num_heads)
        writer.add_ssm_group_count(config.n_groups)
    else:
        writer.add_head_count(config.num_attention_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if kind == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.head_dim)
    if kind == "lfm2":
        writer.add_feed_forward_length(config.block_ff_dim)
        shared = config.num_key_value_heads
        writer.add_head_count_kv([shared if layer == "full_attention" else 0 for layer in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    for name, tensor in {"llama": _llama, "lfm2": _lfm2, "mamba2": _mamba2}[kind](model).items():
        writer.add_tensor(name, tensor.detach().float().cpu().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _llama(model: Any) -> dict[str, Tensor]:
    config = model.config
    tensors = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        attention, feed_forward = layer.self_attn, layer.mlp
        parts = {
            "attn_norm": layer.input_layernorm.weight,
            "attn_q": _neighbouring_pairs(attention.q_proj.weight, config.num_attention_heads),
            "attn_k": _neighbouring_pairs(attention.k_proj.weight, config.num_key_value_heads),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "ffn_gate": feed_forward.gate_proj.weight,
            "ffn_up": feed_forward.up_proj.weight,
            "ffn_down": feed_forward.down_proj.weight,
        }
        tensors |= {f"blk.{index}.{name}.weight": tensor for name, tensor in parts.items()}
    return _with_head(tensors, model)


def _lfm2(model: Any) -> dict[str, Tensor]:
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "token_embd_norm.weight": model.model.embedding_norm.weight,
    }
    for index, layer in enumerate(model.model.layers):
        parts = {
            "attn_norm": layer.operator_norm.weight,
            "ffn_norm": layer.ffn_norm.weight,
            "ffn_gate": layer.feed_forward.w1.weight,
            "ffn_up": layer.feed_forward.w3.weight,
            "ffn_down": layer.feed_forward.w2.weight,
        }
        if layer.is_attention_layer:
            attention = layer.self_attn
            parts |= {
                "attn_q": attention.q_proj.weight,
                "attn_k": attention.k_proj.weight,
                "attn_v": attention.v_proj.weight,
                "attn_output": attention.out_proj.weight,
                "attn_q_norm": attention.q_layernorm.weight,
                "attn_k_norm": attention.k_layernorm.weight,
            }
        else:
            parts |= {
                "shortconv.in_proj": layer.conv.in_proj.weight,
                "shortconv.conv": layer.conv.conv.weight[:, 0],
                "shortconv.out_proj": layer.conv.out_proj.weight,
            }
        tensors |= {f"blk.{index}.{name}.weight": tensor for name, tensor in parts.items()}
    return _with_head(tensors, model)


def _neighbouring_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rotary pairs of transformers are the halves of a head, those of llama.cpp are neighbours."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _mamba2(model: Any) -> dict[str, Tensor]:
    config = model.config
    tensors = {
        "token_embd.weight": model.backbone.embeddings.weight,
        "output_norm.weight": model.backbone.norm_f.weight,
    }
    for index, layer in enumerate(model.backbone.layers):
        mixer = layer.mixer
        parts = {
            "attn_norm.weight": layer.norm.weight,
            "ssm_in.weight": mixer.in_proj.weight,
            "ssm_conv1d.weight": mixer.conv1d.weight[:, 0],
            "ssm_conv1d.bias": mixer.conv1d.bias,
            "ssm_dt.bias": mixer.dt_bias,
            "ssm_a": -mixer.A_log.exp()[:, None],
            "ssm_d": mixer.D[:, None],
            "ssm_norm.weight": mixer.norm.weight.view(config.n_groups, -1),
            "ssm_out.weight": mixer.out_proj.weight,
        }
        tensors |= {f"blk.{index}.{name}": tensor for name, tensor in parts.items()}
    return _with_head(tensors, model)


def _with_head(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """llama.cpp takes the embedding for the head where a file has none."""
    return tensors if model.config.tie_word_embeddings else {**tensors, "output.weight": model.lm_head.weight}


class LlamaCppDecoder(Decoder):
    """llama.cpp with the weights of a model, one sequence, through its C interface.

    Args:
        name: what it is called. model: of transformers. threads: of reading and generating. context: tokens at most.
    """

    engine = "llama.cpp"

    def __init__(self, name: str, model: PreTrainedModel, threads: int, context: int) -> None:
        import llama_cpp

        self.model = name
        self._api = llama_cpp
        # Its notes on loading are a line for each tensor.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(model, path)
            options = llama_cpp.llama_model_default_params()
            options.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise SeqmixError(f"llama.cpp cannot load the model {name}: update llama-cpp-python, or leave it out")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._piece = settings.n_batch
        self._vocab_size = model.config.vocab_size
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._state: Any = None
        self._first = 0

    def read(self, tokens: Sequence[int]) -> None:
        self._api.llama_memory_clear(self._memory, True)
        for start in range(0, len(tokens), self._piece):
            self._decode(tokens[start : start + self._piece])
        self._first = int(self.logits().argmax())
        self._state = None

    def stand(self) -> None:
        if self._state is None:
            size = self._api.llama_state_seq_get_size(self._context, 0)
            self._state = (ctypes.c_uint8 * size)()
            self._api.llama_state_seq_get_data(self._context, self._state, size, 0)
        else:
            self._api.llama_memory_clear(self._memory, False)
            self._api.llama_state_seq_set_data(self._context, self._state, len(self._state), 0)

    def generate(self, count: int) -> None:
        token = self._first
        for _ in range(count):
            self._decode([token])
            token = int(self.logits().argmax())

    def logits(self) -> NDArray[np.float32]:
        """(vocab,), after the token that was read last."""
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), shape=(self._vocab_size,))

    def _decode(self, tokens: Sequence[int]) -> None:
        piece = (self._api.llama_token * len(tokens))(*tokens)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(piece, len(tokens)))
        if status:
            raise SeqmixError(f"llama.cpp ends with status {status} while it reads {len(tokens)} tokens")
