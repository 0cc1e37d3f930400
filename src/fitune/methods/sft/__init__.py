"""sft and lm: next-token prediction on the trained tokens of each row."""
