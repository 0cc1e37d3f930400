"""lm: next-token prediction on plain text, by the trainer of sft."""
