"""Allocations and frees replayed: CUDA's caching allocator.

In: events in their order. Out: peaks of allocated and reserved bytes. Imports only the standard library.
"""
