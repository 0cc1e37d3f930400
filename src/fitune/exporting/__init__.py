"""From a run to where it will be used: an adapter, a merged model, a GGUF file, an Ollama Modelfile; and how faithful it is.

In: a run, an adapter or a model. Out: a new folder with the copy and `fidelity.json`, whole or not at all.
Knows nothing of training and of the command line. Begin reading at `export.py`.
"""
