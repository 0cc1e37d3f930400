"""The demo tasks: Pig Latin, Yoda, and the sentences that they are made from."""
