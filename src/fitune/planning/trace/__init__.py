"""A run's phases on the meta device: every storage from its allocation to its end.

In: a transformers config, a `Scenario`, a compute capability. Out: a `Trace` of plain numbers.
Knows nothing of allocators, cards' sizes or settings.
"""
