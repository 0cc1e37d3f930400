"""A model's answers, and metrics over them.

In: a model, the one renderer, conversations. Out: answers, metrics, next-token views.
Knows nothing of training; training calls it.
"""
