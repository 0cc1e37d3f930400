"""A step that several ranks take together: rows dealt out, gradients summed, facts exchanged once.

In: the rows of a step, a model that every rank holds. Out: the same sums on every rank.
Knows nothing of losses or settings.
"""
