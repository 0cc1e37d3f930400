"""The life of an adapter: attach to a base, save, load again.

In: a loaded base and plain LoRA options. Out: a PEFT model, or an adapter folder that plain PEFT opens too.
Knows nothing of data, training loops or runs.
"""
