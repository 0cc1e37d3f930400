"""A Modelfile: Ollama's recipe for one GGUF file, its template filled in so that the prompt is the one that was trained."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from fitune.console import warn
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.exporting.gguf.vocabulary import adds_bos
from fitune.exporting.go_template import derive
from fitune.exporting.probe_prompts import run_of
from fitune.runs.compare import read_settings

DETECTION = (
    "which takes its own for a template in the GGUF file that it recognizes, and none otherwise; compare its prompts"
)


def modelfile(gguf_name: str, renderer: Renderer, context: int | None = None) -> str:
    """The text of a Modelfile beside the GGUF file; `ollama create NAME -f Modelfile` reads it.

    Greedy decoding, as everywhere in fitune: Ollama's own default is a temperature of 0.8.

    A template that cannot be written in Go is left out, and a comment says so.

    Args:
        context: tokens of prompt and answer together (Ollama's own default is a few thousand and cuts the rest off);
            None leaves it to Ollama.
    """
    tokenizer = renderer.tokenizer
    try:
        turns = derive(tokenizer, renderer.template_text, tokenizer.bos_token if adds_bos(tokenizer)[0] else "")
    except ModelError as error:
        warn(f"{error}. The Modelfile leaves the template to Ollama, {DETECTION}")
        template = f"# No TEMPLATE: {error}.\n# The template is left to Ollama, {DETECTION}."
    else:
        template = f'TEMPLATE """{turns.go()}"""'
        if "strftime_now" in renderer.template_text:
            warn("the chat template writes today's date; in the Modelfile it stays that of the export")
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))]
    system = renderer.asking.system
    lines = [
        f"FROM ./{gguf_name}",
        template,
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
