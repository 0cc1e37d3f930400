"""A Modelfile: Ollama's recipe for one GGUF file, its template filled in so that the prompt is the one that was trained."""

from __future__ import annotations

from fitune.console import warn
from fitune.data.render.renderer import Renderer
from fitune.exporting.gguf.vocabulary import adds_bos
from fitune.exporting.go_template import derive


def modelfile(gguf_name: str, renderer: Renderer) -> str:
    """The text of a Modelfile beside the GGUF file; `ollama create NAME -f Modelfile` reads it.

    Greedy decoding, as everywhere in fitune: Ollama's own default is a temperature of 0.8.

    Raises:
        ModelError: the chat template cannot be written as a Go template.
    """
    tokenizer = renderer.tokenizer
    turns = derive(tokenizer, renderer.template_text, tokenizer.bos_token if adds_bos(tokenizer)[0] else "")
    if "strftime_now" in renderer.template_text:
        warn("the chat template writes today's date; in the Modelfile it stays that of the export")
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))]
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{turns.go()}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"
