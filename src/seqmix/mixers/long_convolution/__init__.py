"""Convolutions as long as the sequence: learned tap by tap, implicit, or with a state of fixed size."""
