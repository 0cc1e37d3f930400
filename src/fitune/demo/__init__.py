"""The built-in task: sentences, their Pig Latin, and Pig Latin with slips. Not part of the library's machinery.

In: a tokenizer's whole words, a seed. Out: rows as plain dicts. Knows nothing of files.
"""
