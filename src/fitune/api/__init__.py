"""The Python API: what the commands do, as functions for scripts and notebooks, with results that show themselves.

In: keywords with the names of the settings. Out: objects with a short repr, and a table in a notebook.
"""
