"""LoRA adapters: injected into a base, saved, loaded, combined, merged and unmerged.

In: a loaded base and plain LoRA options. Out: a PEFT model, or an adapter folder that plain PEFT opens too.
Knows nothing of data, training loops or runs.
"""
