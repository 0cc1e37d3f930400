"""The optimizer step: packed and padded rows, preferences, online RL, out-of-memory recovery."""
