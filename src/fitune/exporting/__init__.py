"""Exports: adapter, merged model, GGUF, Ollama; each with a fidelity report.

In: a run, an adapter or a model. Out: a new folder with the copy and `fidelity.json`, whole or not at all.
Knows nothing of training and of the command line. Begin reading at `export.py`.
"""
