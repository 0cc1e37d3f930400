"""grpo: the model's own answers, rewarded, each against the others to its prompt."""
