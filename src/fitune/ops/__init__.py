"""Losses, attention and LoRA layers for packed rows."""
