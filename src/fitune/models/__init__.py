"""A name → a loaded base: hub id, folder, GGUF file or the built-in model.

In: plain values (name, revision, device, precision, attention, template choice). Out: `LoadedBase`.
Knows nothing of data, adapters or runs.
"""
