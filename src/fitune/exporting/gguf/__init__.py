"""GGUF files: families, tensors, types and vocabularies as llama.cpp wants them."""
