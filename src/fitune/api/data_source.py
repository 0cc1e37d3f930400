"""The question of `fitune data check`: a file or a recipe, with the settings and the renderer that training would use.

In: the name of a source and changed settings. Out: `Settings`, a `Renderer`. Faults of the file come before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fitune.config.sections import Settings
    from fitune.data.render.renderer import Renderer


def settings_of_data(source: str, overrides: Mapping[str, object]) -> Settings:
    """Settings of a recipe, or the defaults with a file as its training data and nothing held out."""
    from fitune.config.settings_loader import load_settings

    if source.endswith((".yaml", ".yml")):
        return load_settings(source, overrides)
    held_out = {} if "data.eval" in overrides else {"data.eval_share": "0"}
    chosen = overrides.keys() & {"method", "data.columns", "data.form"}
    fitting = None if chosen else _preference_method(source)
    method = {} if fitting is None else {"method": fitting}
    return load_settings(None, {"data.train": source, **held_out, **method, **overrides})


def _preference_method(source: str) -> str | None:
    """A method that reads the preferences that a file (not the hub's, which is read once only) holds by its columns."""
    from fitune.data.read.files import columns_of
    from fitune.data.read.recognise import holds
    from fitune.demo.tasks import PAIRS, is_demo
    from fitune.errors import DataError

    if source.startswith("hub:") or is_demo(source):
        return "dpo" if source.startswith(PAIRS) else None
    try:
        rows = _rows_of(source)
    except DataError:  # told by the command itself
        return None
    if holds("pairs", columns_of(rows), rows[0]):
        return "dpo"
    return "kto" if holds("judged", columns_of(rows), rows[0]) else None


def _rows_of(source: str) -> Sequence[Mapping[str, object]]:
    """The rows of a file (of a large one, the first), read once as long as it stays as it is."""
    path = Path(source).expanduser()
    return _read(source, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _read(source: str, changed: int) -> Sequence[Mapping[str, object]]:
    from fitune.data.read.files import first_rows

    return first_rows(source)


def refuse_unreadable(settings: Settings) -> None:
    """Raises DataError, before torch and a tokenizer are loaded, for files that are not there or of no known form."""
    from fitune.data.read.files import columns_of
    from fitune.data.read.mixture import sources_in
    from fitune.data.read.recognise import recognise
    from fitune.demo.tasks import is_demo
    from fitune.methods.registry import METHODS

    sources = sources_in(settings.data.train)
    held_out = sources_in(settings.data.eval) if settings.data.eval else []
    for name in [one.name for one in (*sources, *held_out)]:
        if name.startswith("hub:") or is_demo(name):
            continue
        rows = _rows_of(name)
        if len(sources) == 1:
            recognise(
                columns_of(rows), settings.data.form, settings.data.columns, METHODS[settings.method].reads, rows[0]
            )


def renderer_of(settings: Settings) -> tuple[Renderer, PretrainedConfig]:
    """The renderer that training would use, and the model's config; no weights are loaded."""
    from fitune.models.load_config import load_config
    from fitune.models.source import resolve
    from fitune.models.template import resolve_template
    from fitune.models.tokenizer import load_tokenizer
    from fitune.training.setup import make_renderer

    source = resolve(settings.model.name, settings.model.revision, settings.model.allow_pickled)
    config = load_config(source, settings.model.trust_remote_code)
    tokenizer = load_tokenizer(source, settings.model.trust_remote_code)
    template = resolve_template(tokenizer, settings.model.chat_template)
    return make_renderer(tokenizer, template, config, settings.data), config
