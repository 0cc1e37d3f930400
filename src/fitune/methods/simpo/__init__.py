"""simpo: preferences by mean log-probability a token, without a reference."""
