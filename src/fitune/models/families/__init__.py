"""What was tried with which model family: the sheet that benchmarks/families.py makes, and what is said of a family."""
