"""Files and hub sets → rows of a recognised form, each fault with its place."""
