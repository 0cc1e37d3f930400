"""What run folders hold, read for the pages: metrics as they grow, answers, every run in a line, one run whole. Writes nothing."""
