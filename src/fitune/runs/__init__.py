"""Run folders: manifest, metrics, checkpoints, report and model card.

In: plain values. Out: files below ``runs/NAME/``, and plain dicts read back from them.
Knows nothing of models, tokenizers or trainers; torch is not imported here.
"""
