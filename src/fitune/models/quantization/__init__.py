"""Quantized bases through bitsandbytes: how layers are stored, and what that costs in size and error."""
