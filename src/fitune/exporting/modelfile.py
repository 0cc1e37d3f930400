"""A Modelfile: Ollama's recipe for one GGUF file, its template filled in so that the prompt is the one that was trained."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from fitune.console import warn
from fitune.data.render.renderer import Renderer
from fitune.exporting.gguf.vocabulary import adds_bos
from fitune.exporting.go_template import derive
from fitune.exporting.probe_prompts import run_of
from fitune.runs.compare import read_settings


def modelfile(gguf_name: str, renderer: Renderer, context: int | None = None) -> str:
    """The text of a Modelfile beside the GGUF file; `ollama create NAME -f Modelfile` reads it.

    Greedy decoding, as everywhere in fitune: Ollama's own default is a temperature of 0.8.

    Args:
        context: tokens of prompt and answer together (Ollama's own default is a few thousand and cuts the rest off);
            None leaves it to Ollama.

    Raises:
        ModelError: the chat template cannot be written as a Go template.
    """
    tokenizer = renderer.tokenizer
    turns = derive(tokenizer, renderer.template_text, tokenizer.bos_token if adds_bos(tokenizer)[0] else "")
    if "strftime_now" in renderer.template_text:
        warn("the chat template writes today's date; in the Modelfile it stays that of the export")
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))]
    system = renderer.asking.system
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{turns.go()}"""',
        *([f'SYSTEM """{system}"""'] if system and '"""' not in system else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        *([f"PARAMETER num_ctx {context}"] if context else []),
    ]
    return "\n".join(lines) + "\n"


def trained_context(folder: Path | None, config: PretrainedConfig) -> int | None:
    """Tokens of the longest row that the run of ``folder`` took: `data.max_length`, else the model's context length.

    Args:
        folder: an adapter or model in a run's folder, or one without a run.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    run = run_of(folder) if folder is not None else None
    asked = read_settings(run).get("data", {}).get("max_length") if run is not None else None
    return asked or context
