"""Losses, attention and LoRA layers for packed rows.

In: a model's body and head, packs of rows, plain values. Out: losses, log-probabilities, hidden states.
Knows nothing of trainers, settings or files. Every fast path here has a test against the plain one: same loss, same
gradients.
"""
