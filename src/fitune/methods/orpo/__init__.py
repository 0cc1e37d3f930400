"""orpo: a supervised loss and the odds of two answers, without a reference."""
