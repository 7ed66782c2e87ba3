"""Hugging Face's architectures that ours convert to and from (`seqmix.models.convert`), one file each."""
