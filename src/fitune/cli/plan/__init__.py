"""`fitune plan`: the question out of the command line's words, and its answers."""
