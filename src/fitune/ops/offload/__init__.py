"""What a training step keeps in the host's memory instead of the card's.

In: a model with checkpointed layers. Out: the same losses and gradients, less of the card's memory.
Knows nothing of trainers or settings.
"""
