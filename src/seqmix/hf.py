"""Importing this registers seqmix with Hugging Face's Auto classes; runs then open with `from_pretrained`."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from seqmix.models import SeqmixConfig, SeqmixForCausalLM, SeqmixModel

AutoConfig.register(SeqmixConfig.model_type, SeqmixConfig, exist_ok=True)
AutoModel.register(SeqmixConfig, SeqmixModel, exist_ok=True)
AutoModelForCausalLM.register(SeqmixConfig, SeqmixForCausalLM, exist_ok=True)
