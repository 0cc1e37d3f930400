"""Configs of LLaMA-Factory, axolotl, TRL and Unsloth as fitune's settings: what has a counterpart, and what has none."""
