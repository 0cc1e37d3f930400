"""Parts of report.html: tiles, curves, held-out rows, sampled answers, memory; each a list of pieces of HTML.

In: a manifest, rows of metrics.jsonl and samples.jsonl. Out: HTML, everything escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from fitune.answer_metrics import row_scores
from fitune.runs import manifest as manifests
from fitune.runs.compare import memory_of
from fitune.runs.run_folder import Answered, Rollout
from fitune.sizes import size_in
from fitune.web.charts import Line, line_chart
from fitune.web.figures import clock, number
from fitune.web.tables import marked, table

ROLLOUT_STEPS, ROLLOUT_ROWS = 10, 8
POINTS = 400  # of a curve; more are drawn as means between their lowest and highest
ENOUGH_ROWS = 6  # up to here all held-out rows stand in the order of the data
# In metrics.jsonl, not measured: they say where a row belongs.
PLACES = {"step", "kind", "epoch", "tokens", "seconds", "memory_bytes"}
# Charts that stand open, the first that are there; the others are folded away.
FIRST = ("loss", "reward", "accuracy", "word accuracy", "KL", "learning rate", "grad norm", "tokens per second")
OPEN_CHARTS = 6
NAMES = {"kl": "KL"}


def tiles(manifest: manifests.Manifest, metrics: Sequence[Mapping[str, object]]) -> list[str]:
    """The figures that one asks for first."""
    trained = [row for row in metrics if row.get("kind") == "train"]
    results = manifest.get("results", {})
    before, after = results.get("before") or {}, results.get("after") or {}
    found: list[tuple[str, str]] = []
    if seconds := duration_s(manifest):
        found.append(("time", clock(seconds)))
    speeds = [speed for row in trained if isinstance(speed := row.get("tokens_per_second"), int | float)]
    if speeds:
        found.append(("tokens/s, median", number(sorted(speeds)[len(speeds) // 2])))
    if figures := memory_of(manifest):
        name, peak = next(iter(figures.items()))
        words = {"allocated_bytes": "peak allocated", "resident_growth_bytes": "peak growth of RSS"}
        found.append((words.get(name, "peak memory"), size_in(peak["measured"], peak["measured"])))
    if best := results.get("best_step"):
        found.append(("best step", f"{best:,} of {results.get('steps', best):,}"))
    for name in after:
        if name in before and len(found) < 8:
            found.append((f"{shown(name)}, held out", f"{number(before[name])} → {number(after[name])}"))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in found)
    return [f'<dl class="figures tiles">{items}</dl>'] if items else []


def duration_s(manifest: manifests.Manifest) -> float | None:
    """From the run's start to its end; None while it goes on."""
    started, ended = manifest.get("started"), manifest.get("ended")
    if not started or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def shown(name: str) -> str:
    """A metric's name in words."""
    return NAMES.get(name, name.replace("_", " "))


def curves(metrics: Sequence[Mapping[str, object]]) -> list[str]:
    """A chart for each logged number, training and held-out rows in one; those that matter most stand open."""
    lines: dict[str, list[Line]] = {}
    for kind, label in (("train", "training"), ("eval", "held out")):
        rows = [row for row in metrics if row.get("kind") == kind]
        for name in dict.fromkeys(name for row in rows for name in row if name not in PLACES):
            if len((line := _line(rows, name, label)).xs):
                lines.setdefault(shown(name), []).append(line)
    drawn = {name: held for name, held in lines.items() if max(len(line.xs) for line in held) > 1}
    if not drawn:
        return []
    order = sorted(drawn, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    charts = [line_chart(drawn[name], name, hover=True) for name in order]
    more = "".join(charts[OPEN_CHARTS:])
    folded = f'<details><summary>{len(charts) - OPEN_CHARTS} more</summary><div class="charts">{more}</div></details>'
    open_charts = f'<div class="charts">{"".join(charts[:OPEN_CHARTS])}</div>'
    return ["<h2>Curves</h2>", open_charts, *([folded] if more else [])]


def _line(rows: Sequence[Mapping[str, object]], name: str, label: str) -> Line:
    """A number over the steps; more than `POINTS` are drawn as means of neighbours."""
    pairs = [(row.get("step"), row.get(name)) for row in rows]
    points = [(step, value) for step, value in pairs if isinstance(step, int) and isinstance(value, int | float)]
    size = -(-len(points) // POINTS) or 1
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    values = [[value for _, value in part] for part in parts]
    xs, ys = [part[0][0] for part in parts], [sum(part) / len(part) for part in values]
    if size == 1:
        return Line(label=label, xs=xs, ys=ys)
    return Line(label=label, xs=xs, ys=ys, low=[min(part) for part in values], high=[max(part) for part in values])


def held_out(samples: Sequence[Answered | Rollout]) -> list[str]:
    """prompt, before, after, reference; of many rows the worst answers come first, the best are folded away."""
    before = {row["row"]: row["answer"] for row in samples if row["moment"] == "before"}
    after = [row for row in samples if row["moment"] == "after"]
    if not after:
        return []
    if len(after) > ENOUGH_ROWS:
        after = sorted(after, key=lambda row: row_scores(row["answer"], row["wanted"])["word_accuracy"])
    half = len(after) if len(after) <= ENOUGH_ROWS else -(-len(after) // 2)
    body = ["<h2>Held-out rows</h2>", _answers(after[:half], before)]
    if after[half:]:
        body[0] = "<h2>Held-out rows, the worst answers first</h2>"
        rows = _answers(after[half:], before)
        body.append(f"<details><summary>the {len(after) - half} better ones</summary>{rows}</details>")
    return body


def _answers(rows: Sequence[Answered | Rollout], before: Mapping[int, str]) -> str:
    lines: list[str] = []
    for row in rows:
        cells = (
            escape(row["asked"]),
            escape(before.get(row["row"], "")),
            marked(row["answer"], row["wanted"]),
            escape(row["wanted"]),
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("prompt", "before", "after", "reference"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def rollouts(samples: Sequence[Answered | Rollout]) -> list[str]:
    """Answers that were sampled and rewarded in the last steps, the worst first, then the best."""
    kept = [row for row in samples if row["moment"] == "rollout"]
    if not kept:
        return []
    steps = sorted({row["step"] for row in kept})[-ROLLOUT_STEPS:]
    latest = sorted((row for row in kept if row["step"] in steps), key=lambda row: row["reward"])
    blocks = [f"<h2>Sampled answers of steps {steps[0]} to {steps[-1]}</h2>"]
    for title, rows in (("Lowest reward", latest[:ROLLOUT_ROWS]), ("Highest reward", latest[::-1][:ROLLOUT_ROWS])):
        lines: list[tuple[str, ...]] = []
        for row in rows:
            parts = ", ".join(f"{name} {value:.3g}" for name, value in row["rewards"].items())
            reward = f"{row['reward']:.3f}" + (f" ({parts})" if len(row["rewards"]) > 1 else "")
            ended = "" if row["stopped"] else " (truncated)"
            lines.append((row["asked"], row["answer"] + ended, row["wanted"], reward, str(row["step"])))
        blocks += [f"<h3>{title}</h3>", table(("prompt", "completion", "reference", "reward", "step"), lines)]
    return blocks


def scores(results: manifests.Results) -> list[str]:
    """Metrics before and after, side by side."""
    before, after = results.get("before") or {}, results.get("after") or {}
    rows = [(shown(name), f"{before[name]:.4f}", f"{after[name]:.4f}") for name in after if name in before]
    return ["<h2>Before and after</h2>", table(("metric", "before", "after"), rows)] if rows else []


def memory(manifest: manifests.Manifest) -> list[str]:
    """Predicted and measured peak side by side, and what was given up to fit."""
    figures = memory_of(manifest)
    body: list[str] = []
    if figures:
        rows = [
            (
                shown(name.removesuffix("_bytes")),
                f"{one['predicted'] / 2**20:,.0f} MiB" if "predicted" in one else "",
                f"{one['measured'] / 2**20:,.0f} MiB",
                f"{one['difference']:+.1%}" if "difference" in one else "",
            )
            for name, one in figures.items()
        ]
        body.append(table(("peak", "predicted", "measured", "difference"), rows))
    if steps := manifest.get("memory", {}).get("ladder", {}).get("steps"):
        given_up = [(one["name"], f"{one['saves_bytes'] / 2**20:,.0f} MiB", one["quality"]) for one in steps]
        body.append(table(("changed to fit", "saves", "quality"), given_up))
    if downs := manifest.get("memory", {}).get("step_downs"):
        body.append(table(("out of memory", "from there on"), [(one["at"], one["to"]) for one in downs]))
    return ["<h2>Memory</h2>", *body] if body else []
