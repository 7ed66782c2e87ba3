"""RWKV-6 and RWKV-7: time mixing and channel mixing."""
