"""A trained model behind an OpenAI-compatible address (`fitune serve`): the renderer and the end tokens of training.

Reading order: `requests.py` (what a client sends), `batch_generation.py` (a batch of answers, token by token),
`engine.py` (the queue and the adapters), `reply.py` (tokens to text, reasoning and calls), `app.py` (HTTP).
Needs the extra `fitune[serve]`.
"""
