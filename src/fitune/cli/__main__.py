"""`python -m fitune.cli`, where the command `fitune` is not on the path."""

from fitune.cli import main

main()
