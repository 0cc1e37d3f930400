"""Commands that ask a model: chat, generate, evaluate, score."""
