"""`fitune studio`: what the command line asks before the server starts."""
