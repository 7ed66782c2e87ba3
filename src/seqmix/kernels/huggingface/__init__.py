"""Our kernels under the models of Hugging Face's transformers.

`patch.py` finds the functions that fall back to slow code on a CPU, puts ours in their place and takes them out
again; `forms.py` are ours, with the signatures that transformers calls.
"""

from seqmix.kernels.huggingface.patch import TransformersPatch, patch_transformers

__all__ = ["TransformersPatch", "patch_transformers"]
