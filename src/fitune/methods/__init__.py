"""The methods of training, one folder each: its facts and settings (config.py, without torch) and its trainer (trainer.py).

In: a word of ``method:``. Out: what the method reads, measures and allows; its model and its trainer.
Knows nothing of Settings, run folders' layout or the command line. registry.py lists the methods.
"""
