"""What fits: the ladder of concessions, the largest length, batch or rank, the grid of remedies.

In: a start and a function that plans a scenario. Out: ladders, limits, grids. Knows nothing of settings.
"""
