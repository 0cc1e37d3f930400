"""docs/speed.md and its picture, from what compare.py measured.

    python benchmarks/speed/page.py benchmarks/speed/results.json

The page is made by this file alone; what is said in words about the figures is docs/tried.md's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
GOALS = {"a": 4.0, "b": 3.0, "c": 6.0, "d": 2.0, "e": 2.5}
MEMORY_GOAL = 0.6
WHAT = {
    "a": "Pig Latin, short rows under a system prompt",
    "b": "instructions of 50 to 1,000 tokens",
    "c": "eight few-shot examples before each question",
    "d": "plain text, full rows, nothing shared",
    "e": "conversations of four turns, loss on each answer",
    "f": "preference pairs sharing their prompt",
}
COLORS = ("#1b3a8f", "#7570b3", "#1b9e77", "#e6ab02", "#d95f02", "#a6761d", "#999999")


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| workload | rows a step × tokens | computed | TRL tokens/s | fitune tokens/s | faster (median) | goal "
        "| of the floor | peak memory, fitune / TRL | loss, largest difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        gib = [f"{one[f'{side}_peak_bytes'] / 2**30:.2f}" for side in ("fitune", "trl")]
        goal = GOALS.get(one["workload"])
        reached = one["speedup"] >= goal if goal else False
        lines.append(
            f"| {one['workload']} | {one['rows_a_step']} × {one['tokens_a_row']:.0f} | {one['computed_share']:.0%} "
            f"| {one['trl_tokens_per_second']:.0f} | {one['fitune_tokens_per_second']:.0f} | {one['speedup']:.2f}× "
            f"| {f'{goal:g}× ' + ('reached' if reached else 'missed') if goal else '–'} | {one['share_of_floor']:.0%} "
            f"| {gib[0]} / {gib[1]} GiB = {one['memory_ratio']:.2f}× | {one['largest_loss_difference']:.4f} |"
        )
    return "\n".join(lines)


def peers_table(peers: dict[str, dict[str, Any]]) -> str:
    """Other trainers on workload a, of peers.py."""
    lines = ["| trainer | its tokens/s | fitune tokens/s | faster (median of runs) | date |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} ({', '.join(one['packages'])}) | {one['peer_tokens_per_second']:.0f} "
        f"| {one['fitune_tokens_per_second']:.0f} | {one['speedup']:.2f}× | {one['date']} |"
        for name, one in peers.items()
    ]
    return "\n".join(lines)


def page(data: dict[str, Any], peers: dict[str, dict[str, Any]], picture: str | None) -> str:
    """docs/speed.md."""
    results = sorted(data["results"], key=lambda one: one["workload"])
    first = results[0]["where"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    measured = sorted({one["where"]["date"] for one in results})
    parts = [
        "<!-- made by benchmarks/speed/page.py from benchmarks/speed/results.json -->",
        "# Training speed on a CPU, compared with TRL",
        f"{' and '.join(measured)}, {first['cpu']}, {first['threads']} threads; {versions}. SmolLM2-135M-Instruct in "
        "bf16, LoRA of rank 16 on all linear layers, fp32 adapters. TRL's `SFTTrainer` at its faster setting (model "
        "loaded in bf16, `bf16=True`, no checkpointing, its loss in chunks). The two take turns at every step, so both "
        "run under the same conditions; figures are medians over the steps after the first.",
        table(results),
        *data.get("notes", ()),
        "Tokens/s counts the tokens of all rows, shared prefixes included. Computed: the share of them that is left when "
        "shared prefixes are computed once. Floor: the matrix products that a step cannot avoid, timed at their own "
        "sizes between the steps. Peak memory: maximum resident memory of the process while training, of which about "
        f"1.0 GiB are imports and the model in both. The goal for memory is {MEMORY_GOAL}× on a to e.",
        "\n".join(f"- **{key}** {text}" for key, text in WHAT.items()),
    ]
    if picture:
        parts += ["## Where a step's time goes", f"![a step's time by part, each side]({picture})"]
    if peers:
        parts += [
            "## Compared with other trainers",
            "Workload a, with the same texts, rows per step, rank and dtypes as far as each trainer allows; whole runs in "
            "turn (benchmarks/speed/peers.py has the settings of each and the reasons).",
            peers_table(peers),
        ]
    if epoch := data.get("epoch"):
        said = (
            f"The demo's recipe, same rows, order, seed and schedule, {epoch['steps']} steps: the median difference of the "
            f"losses is {epoch['median_absolute_gap']:.3f} ({epoch['mean_gap']:+.3f} on average), while the loss changes by "
            f"{epoch['median_move_between_steps']:.3f} from one step to the next (benchmarks/speed/epoch.py). Mean of the "
            f"last 50 steps: {epoch['last_50_steps'][0]:.3f} for fitune and {epoch['last_50_steps'][1]:.3f} for TRL."
        )
        if noise := data.get("noise"):
            said += (
                f" For comparison, two TRL runs with different initial adapters, {noise['steps']} steps, differ by "
                f"{noise['median_absolute_gap']:.3f} in the median ({noise['mean_gap']:+.3f} on average)."
            )
        parts += ["## The same losses", said, f"![loss curves]({epoch['picture']})"]
    commands = (
        "compare.py --workloads a b c d e f --profile",
        "peers.py litgpt llama-factory --folder /tmp/peers",
        "page.py benchmarks/speed/results.json",
    )
    lines = "\n".join(f"    python benchmarks/speed/{command}" for command in commands)
    parts += ["## Measure it yourself", lines]
    return "\n\n".join(parts) + "\n"


def parts_svg(results: list[dict[str, Any]]) -> str:
    """Bars of a step's seconds by part: fitune and TRL for each workload that was profiled."""
    bars = [(one["workload"], kind, one) for one in results for kind in ("fitune", "trl") if "parts" in one]
    longest = max(_seconds(one, kind) for _, kind, one in bars)
    names = list(bars[0][2]["parts"]["fitune"])
    height, wide = 22, 560
    rows = []
    for number, (workload, kind, one) in enumerate(bars):
        y, x = 12 + number * (height + 6), 110.0
        label = f"{workload}, {'TRL' if kind == 'trl' else kind}"
        rows.append(f'<text x="104" y="{y + 15}" text-anchor="end">{label}</text>')
        for color, name in zip(COLORS, names, strict=True):
            width = wide * one["parts"][kind][name] * _seconds(one, kind) / longest
            rows.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{color}"/>')
            x += width
        rows.append(f'<text x="{x + 6:.0f}" y="{y + 15}">{_seconds(one, kind):.2f} s</text>')
    y = 28 + len(bars) * (height + 6)
    for number, (color, name) in enumerate(zip(COLORS, names, strict=True)):
        left, top = 20 + number % 4 * 180, y + number // 4 * 22
        rows.append(f'<rect x="{left}" y="{top - 11}" width="12" height="12" fill="{color}"/>')
        rows.append(f'<text x="{left + 18}" y="{top}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {y + 44}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(rows)}</svg>\n'
    )


def _seconds(one: dict[str, Any], kind: str) -> float:
    """Median seconds of a step, the first left out."""
    values = sorted(one[f"{kind}_seconds"][1:])
    return values[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    data = json.loads(args.results.read_text())
    picture = None
    if any("parts" in one for one in data["results"]):
        picture = "speed-parts.svg"
        (DOCS / picture).write_text(parts_svg(sorted(data["results"], key=lambda one: one["workload"])))
    beside = args.results.with_name("peers.json")
    peers = json.loads(beside.read_text()) if beside.exists() else {}
    (DOCS / "speed.md").write_text(page(data, peers, picture))


if __name__ == "__main__":
    main()
