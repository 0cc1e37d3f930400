"""report.html: one file with the curves, the before/after table, the settings that differ and the facts of a run.

In: a run folder. Out: HTML that loads nothing from anywhere, for light and dark screens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from fitune.runs import manifest as manifests
from fitune.runs.compare import memory_of, read_settings
from fitune.runs.run_folder import Answered, Rollout, RunFolder, read_rows, read_samples

WIDTH, HEIGHT, LEFT, BOTTOM = 520, 190, 56, 24
ROLLOUT_STEPS, ROLLOUT_ROWS = 10, 8
STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --soft: #8884; --good: #15803d; --text: CanvasText; }
@media (prefers-color-scheme: dark) { :root { --line: #7aa2ff; --good: #4ade80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid var(--soft); overflow-wrap: anywhere; } td.number { font-variant-numeric: tabular-nums; }
mark { background: none; color: var(--good); font-weight: 600; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
figcaption { font-weight: 600; } svg text { font: 11px system-ui, sans-serif; fill: var(--text); }
svg path { fill: none; stroke: var(--line); stroke-width: 1.6; } svg line { stroke: var(--soft); }
""".strip()


def write_report(run: RunFolder, defaults: Mapping[str, object]) -> Path:
    """Write report.html of a run, finished or not; returns its path.

    Args:
        defaults: the settings at their defaults, nested as in the run's settings.yaml.
    """
    manifest = manifests.read(run.manifest)
    metrics, samples = read_rows(run.metrics), read_samples(run.samples)
    body = [
        f"<h1>{escape(run.path.name)}</h1>",
        f"<p>{escape(_story(manifest))}</p>",
        *_scores(manifest.get("results", {})),
        *_curves(metrics),
        *_samples(samples),
        *_rollouts(samples),
        *_memory(manifest),
        "<h2>Settings that differ from the defaults</h2>",
        _table(("setting", "value"), [(name, json.dumps(value)) for name, value in changed_settings(run, defaults)]),
        "<h2>Facts</h2>",
        _table(("fact", "value"), list(_flat(manifest))),
    ]
    title = escape(run.path.name)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )
    run.report.write_text(page, encoding="utf-8")
    return run.report


def changed_settings(run: RunFolder, defaults: Mapping[str, object]) -> list[tuple[str, object]]:
    """(dotted name, value) of each setting that is not at its default."""
    default = dict(_flat(dict(defaults)))
    return [(name, value) for name, value in _flat(read_settings(run)) if default.get(name) != value]


def curve(points: Sequence[tuple[float, float]], label: str) -> str:
    """A line chart as inline SVG; points are (step, value)."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)
    span_x, span_y = (high_x - low_x) or 1, (high_y - low_y) or 1

    def at(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / span_x * (WIDTH - LEFT - 10)
        return f"{across:.1f},{10 + (high_y - y) / span_y * (HEIGHT - BOTTOM - 10):.1f}"

    path = "M" + " L".join(at(x, y) for x, y in points)
    base = HEIGHT - BOTTOM
    return (
        f"<figure><figcaption>{escape(label)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(label)}: from '
        f'{ys[0]:.4g} at step {xs[0]:g} to {ys[-1]:.4g} at step {xs[-1]:g}">'
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - 10}" y2="{base}"/>'
        f'<line x1="{LEFT}" y1="10" x2="{LEFT}" y2="{base}"/><path d="{path}"/>'
        f'<text x="{LEFT - 6}" y="16" text-anchor="end">{high_y:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{low_y:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{low_x:g}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">step {high_x:g}</text></svg></figure>'
    )


def _story(manifest: manifests.Manifest) -> str:
    """One sentence: what was done to what, with how many parameters, and how it ended."""
    share = manifest.get("parameters", {}).get("share")
    trained = f", {share:.2%} of its parameters trained" if share else ""
    return (
        f"{manifest.get('model', {}).get('name')} fine-tuned ({manifest.get('method')}, {manifest.get('tuning')}) on "
        f"{manifest.get('data', {}).get('train')}{trained}; {manifest.get('status')}, "
        f"{manifest.get('started')} to {manifest.get('ended') or 'now'}."
    )


def _scores(results: manifests.Results) -> list[str]:
    """Metrics before and after, side by side."""
    before, after = results.get("before") or {}, results.get("after") or {}
    names = [name for name in after if isinstance(after[name], float) and name in before]
    if not names:
        return []
    rows = [(name.replace("_", " "), f"{before[name]:.4f}", f"{after[name]:.4f}") for name in names]
    return ["<h2>Before and after</h2>", _table(("metric", "before", "after"), rows)]


def _memory(manifest: manifests.Manifest) -> list[str]:
    """Predicted and measured peak side by side, and what was given up to fit."""
    figures = memory_of(manifest)
    body: list[str] = []
    if figures:
        rows = [
            (
                name.removesuffix("_bytes").replace("_", " "),
                f"{one['predicted'] / 2**20:,.0f} MiB" if "predicted" in one else "",
                f"{one['measured'] / 2**20:,.0f} MiB",
                f"{one['difference']:+.1%}" if "difference" in one else "",
            )
            for name, one in figures.items()
        ]
        body.append(_table(("peak", "predicted", "measured", "difference"), rows))
    if steps := manifest.get("memory", {}).get("ladder", {}).get("steps"):
        given_up = [(one["name"], f"{one['saves_bytes'] / 2**20:,.0f} MiB", one["quality"]) for one in steps]
        body.append(_table(("given up to fit", "saves", "quality"), given_up))
    if downs := manifest.get("memory", {}).get("step_downs"):
        body.append(_table(("out of memory", "from there on"), [(one["at"], one["to"]) for one in downs]))
    return ["<h2>Memory</h2>", *body] if body else []


def _curves(metrics: Sequence[Mapping[str, object]]) -> list[str]:
    """A chart for each number that was logged at two steps or more."""
    charts = []
    for kind, names in (("train", ("loss", "learning_rate", "grad_norm", "tokens_per_second")), ("eval", None)):
        rows = [row for row in metrics if row.get("kind") == kind]
        known = {"step", "kind", "epoch", "tokens", "seconds", "memory_bytes", *(names or ())}
        for name in (*(names or ()), *sorted({key for row in rows for key in row} - known)):
            pairs = [(row["step"], row.get(name)) for row in rows]
            points = [
                (step, value) for step, value in pairs if isinstance(step, int) and isinstance(value, int | float)
            ]
            if len(points) > 1:
                charts.append(curve(points, f"{kind} {name}".replace("_", " ")))
    return ["<h2>Curves</h2>", *charts] if charts else []


def _samples(samples: Sequence[Answered | Rollout]) -> list[str]:
    """asked, before, after, wanted; words at their right place stand out."""
    before = {row["row"]: row["answer"] for row in samples if row["moment"] == "before"}
    after = [row for row in samples if row["moment"] == "after"]
    if not after:
        return []
    lines = []
    for row in after:
        cells = (escape(row["asked"]), escape(before.get(row["row"], "")), _marked(row["answer"], row["wanted"]))
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (*cells, escape(row["wanted"]))) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("asked", "before", "after", "wanted"))
    return ["<h2>Held-out rows</h2>", f"<table><thead><tr>{head}</tr></thead><tbody>", *lines, "</tbody></table>"]


def _rollouts(samples: Sequence[Answered | Rollout]) -> list[str]:
    """Answers that were sampled and rewarded in the last steps, the worst first, then the best."""
    kept = [row for row in samples if row["moment"] == "rollout"]
    if not kept:
        return []
    steps = sorted({row["step"] for row in kept})[-ROLLOUT_STEPS:]
    latest = sorted((row for row in kept if row["step"] in steps), key=lambda row: row["reward"])
    blocks = [f"<h2>Sampled answers of steps {steps[0]} to {steps[-1]}</h2>"]
    for title, rows in (("Worst", latest[:ROLLOUT_ROWS]), ("Best", latest[::-1][:ROLLOUT_ROWS])):
        lines = []
        for row in rows:
            parts = ", ".join(f"{name} {value:.3g}" for name, value in row["rewards"].items())
            reward = f"{row['reward']:.3f}" + (f" ({parts})" if len(row["rewards"]) > 1 else "")
            ended = "" if row["stopped"] else " (cut off)"
            cells = (row["asked"], row["answer"] + ended, row["wanted"], reward, str(row["step"]))
            lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        names = ("asked", "answered", "wanted", "reward", "step")
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        blocks += [f"<h3>{title}</h3><table><thead><tr>{head}</tr></thead><tbody>", *lines, "</tbody></table>"]
    return blocks


def _marked(answer: str, wanted: str) -> str:
    """The answer with the words that are right marked."""
    right = wanted.split()
    words = []
    for place, word in enumerate(answer.split()):
        good = place < len(right) and right[place] == word
        words.append(f"<mark>{escape(word)}</mark>" if good else escape(word))
    return " ".join(words)


def _table(head: Sequence[str], rows: Sequence[tuple[object, ...]]) -> str:
    """A plain table, everything escaped."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested dicts as dotted names."""
    flat: list[tuple[str, object]] = []
    for name, value in values.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]
    return flat
