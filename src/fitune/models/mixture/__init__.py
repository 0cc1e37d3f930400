"""Mixtures of experts: which parameters the experts are, and how an adapter over them is laid out."""
