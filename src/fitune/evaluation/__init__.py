"""What a model answers, and how good the answers are.

In: a model, the one renderer, conversations. Out: answers, metrics, next-token views.
Knows nothing of training; training calls it.
"""
