"""ppo: the model's own answers, rewarded, with a value head."""
