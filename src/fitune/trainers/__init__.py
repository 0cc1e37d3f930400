"""The optimizer step: packed and padded rows, preferences, online RL, out-of-memory recovery.

In: a model with its trained parameters marked, token rows, plain values. Out: steps, metrics, whole checkpoints.
Knows nothing of settings, templates or reports; what a method's loss is, methods/ says.
"""
