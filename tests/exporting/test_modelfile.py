"""The Modelfile serves as long a context as was trained."""

from __future__ import annotations

import fitune
from fitune.exporting.export import export


def test_what_was_trained_at_a_length_is_served_at_it(settings_of, tiny_llama):
    """E06: without num_ctx Ollama cuts at its own default."""
    found = {}
    for name, length in (("whole", None), ("short", 64)):
        settings = settings_of(
            model__name=str(tiny_llama), data__max_length=length, run__name=name, train__max_steps=1, eval__samples=0
        )
        done = export(str(fitune.train(settings).folder), "ollama", num_prompts=2)
        lines = (done.folder / "Modelfile").read_text().splitlines()
        found[name] = [line for line in lines if line.startswith("PARAMETER num_ctx")]
    assert found == {"whole": ["PARAMETER num_ctx 256"], "short": ["PARAMETER num_ctx 64"]}
