"""Base models: found by name, loaded, quantized; their tokenizers and chat templates.

In: plain values (name, revision, device, precision, attention, template choice). Out: `LoadedBase`.
Knows nothing of data, adapters or runs.
"""
