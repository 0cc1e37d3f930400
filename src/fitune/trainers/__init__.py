"""Trainers over transformers' Trainer: padded rows, packs, pairs and sampled answers; what surrounds a step.

In: a model with its trained parameters marked, token rows, plain values. Out: steps, metrics, whole checkpoints.
Knows nothing of settings, templates or reports; what a method's loss is, methods/ says.
"""
