"""The processes that train one run together: which of them this is, and what they tell each other.

In: what torchrun, accelerate or Slurm put into the environment. Out: ranks, small facts gathered from all of them.
Knows nothing of models, data or settings. With one process everything here is a call of the function it is given.
"""
