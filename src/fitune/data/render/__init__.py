"""Conversations → text → tokens with a loss mask: the one renderer of training, evaluation and chat."""
