"""A run from settings to a saved result: setup, fitting the memory, training, resuming, pipelines.

In: `fitune.config.sections.Settings` at the door (run.py); plain values behind it.
Out: `RunResult`, and what `fitune.runs` keeps on disk.
Knows nothing of the command line. The loss (loss.py) and the step (trainer.py) are callable on their own: the memory
plan traces them on the meta device, tree packing replaces the batch.
"""
