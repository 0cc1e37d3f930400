"""Datasets: files → rows → tokens with a loss mask, checked before training, and packed.

In: a file, a hub data set or the demo task, plain values, and a tokenizer. Out: `PreparedData`.
Knows nothing of models and training; `render.py` is the one renderer of training, evaluation and chat.
"""
