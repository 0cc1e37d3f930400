"""The demo tasks: Pig Latin, Yoda, and the sentences that they are made from.

In: a tokenizer's whole words, a seed. Out: rows as plain dicts. Knows nothing of files.
"""
