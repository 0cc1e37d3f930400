"""dpo: preferences of pairs, without a reward model."""
