"""sft: next-token prediction on the responses of conversations."""
