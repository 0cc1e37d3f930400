"""Losses, attention and layers on tensors: what training computes and the memory plan traces.

In: a model's body and head, packs of rows, plain values. Out: losses, log-probabilities, hidden states.
Knows nothing of trainers, settings or files. Every fast path here has a test against the plain one: same loss, same
gradients.
"""
