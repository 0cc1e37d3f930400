"""Memory and time of a run, predicted without weights and without a GPU.

In: a model's config, a `Scenario` (everything that decides memory), a card. Out: a `Plan`.
The very code of training runs on the meta device (trace/), its tensors' lives are replayed through a model of CUDA's
caching allocator (simulate/), and the peak is taken apart (predict.py).
Knows nothing of settings and runs. Importing this package does not import torch.
"""
