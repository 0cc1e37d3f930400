"""report.html: one file with the tiles, curves, the before/after table, the changed settings and the facts of a run.

In: a run folder. Out: HTML that loads nothing from anywhere, for light and dark screens, wide and narrow ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path

from fitune.home_paths import without_home
from fitune.runs import manifest as manifests
from fitune.runs.compare import read_settings
from fitune.runs.end_of_run import next_commands
from fitune.runs.report_parts import curves, held_out, memory, rollouts, scores, tiles
from fitune.runs.run_folder import RunFolder, read_rows, read_samples
from fitune.web.style import stylesheet
from fitune.web.tables import table

STYLE = """
.tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: var(--radius); padding: .6rem 1rem; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0 0; }
.tiles dt { font-size: .8125rem; color: var(--dim); }
.tiles dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; margin: .75rem 0; }
"""


def write_report(run: RunFolder, defaults: Mapping[str, object]) -> Path:
    """Write report.html of a run, finished or not; returns its path.

    Args:
        defaults: the settings at their defaults, nested as in the run's settings.yaml.
    """
    manifest = manifests.read(run.manifest)
    metrics, samples = read_rows(run.metrics), read_samples(run.samples)
    changed = [(name, json.dumps(value, ensure_ascii=False)) for name, value in changed_settings(run, defaults)]
    body = [
        f"<h1>{escape(run.path.name)}</h1>",
        f"<p>{escape(_story(manifest))}</p>",
        *tiles(manifest, metrics),
        *curves(metrics),
        *held_out(samples),
        *rollouts(samples),
        *scores(manifest.get("results", {})),
        *memory(manifest),
        *_next(run, manifest),
        "<h2>Settings that differ from the defaults</h2>",
        table(("setting", "value"), changed),
        "<h2>Facts</h2>",
        f"<details><summary>manifest.json</summary>{table(('fact', 'value'), _flat(manifest))}</details>",
    ]
    title = escape(run.path.name)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{stylesheet()}{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
    run.report.write_text(without_home(page), encoding="utf-8")
    return run.report


def _next(run: RunFolder, manifest: manifests.Manifest) -> list[str]:
    """What to type, to be copied."""
    if manifest.get("status") != "finished":
        return ["<h2>Resume it</h2>", f"<pre>fitune train --resume {escape(str(run.path))}</pre>"]
    commands = [line for line in next_commands(run.path, manifest) if line.startswith("fitune")]
    return ["<h2>Use it</h2>", f"<pre>{escape(chr(10).join(commands))}</pre>"]


def changed_settings(run: RunFolder, defaults: Mapping[str, object]) -> list[tuple[str, object]]:
    """(dotted name, value) of each setting that is not at its default."""
    default = dict(_flat(dict(defaults)))
    return [(name, value) for name, value in _flat(read_settings(run)) if default.get(name) != value]


def _story(manifest: manifests.Manifest) -> str:
    """One sentence: what was done to what, with how many parameters, and how it ended."""
    share = manifest.get("parameters", {}).get("share")
    trained = f", {share:.2%} of its parameters trained" if share else ""
    return (
        f"{manifest.get('model', {}).get('name')} fine-tuned ({manifest.get('method')}, {manifest.get('tuning')}) on "
        f"{manifest.get('data', {}).get('train')}{trained}; {manifest.get('status')}, "
        f"{_time(manifest.get('started'))} to {_time(manifest.get('ended'))}."
    )


def _time(iso: str | None) -> str:
    """A time of the manifest as people read it, in this machine's zone."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M") if iso else "now"


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested dicts as dotted names."""
    flat: list[tuple[str, object]] = []
    for name, value in values.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]
    return flat
