"""reward: a scalar that is higher for the better answer of a pair."""
