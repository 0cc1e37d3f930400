"""What the pages start: a form becomes a recipe, a recipe a process of its own; `fitune … --json` as a child that answers."""
