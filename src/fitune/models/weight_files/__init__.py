"""Files of weights, read and checked before they are opened: safetensors, GGUF."""
