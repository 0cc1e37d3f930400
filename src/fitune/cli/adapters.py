"""`fitune adapters`: list, inspect, combine, rename and delete adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fitune.cli.options.shared import FOLDER, JSON, print_json, print_table

if TYPE_CHECKING:
    from fitune.adapters.storage import Described

DEVICE = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Device."
)


@click.group()
def adapters() -> None:
    """List, show, compare, combine, rename and delete adapters; check what a merge does.

    An adapter is named by its run (name or folder) or by its own folder.

    \b
    fitune adapters list
    fitune adapters show demo
    fitune adapters combine demo=0.7 yoda=0.3 --as both
    """


@adapters.command("list")
@FOLDER
@JSON
def list_command(folder: str, as_json: bool) -> None:
    """List adapters; exported copies are left out.

    \b
    fitune adapters list
    """
    from fitune.adapters.storage import list_adapters
    from fitune.console import log
    from fitune.runs.disk_space import size

    found = list_adapters(folder)
    if as_json:
        print_json(found)
    elif not found:
        log(f"no adapters in {folder}; `fitune train` makes one")
    else:
        columns = ("name", "kind", "rank", "base", "quantization", "size", "path")
        rows = [
            [one.get("error", "") if key == "kind" and "error" in one else one.get(key) for key in columns]
            for one in ({**one, "size": size(one["bytes"]) if "bytes" in one else None} for one in found)
        ]
        print_table(columns, rows, _cell)


@adapters.command()
@click.argument("name")
@FOLDER
@JSON
def show(name: str, folder: str, as_json: bool) -> None:
    """Show base, options, size, and the trained share by module.

    \b
    fitune adapters show demo
    """
    from fitune.adapters.locate import find_adapter
    from fitune.adapters.storage import describe
    from fitune.runs.disk_space import size

    found = describe(find_adapter(name, folder))
    if as_json:
        print_json(found)
        return
    template = found["template"] or {}
    added = f", adds {' '.join(template['added_tokens'])}" if template.get("added_tokens") else ""
    share = "" if found["share"] is None else f" ({found['share']:.2%} of {found['total']:,})"
    rows = [
        ["base", found["base"]],
        ["revision", found["revision"] or "not pinned"],
        ["quantization", found["quantization"]],
        ["chat template", f"{_origin(template.get('origin'))}{added}"],
        ["kind", f"{found['kind']}, rank {found['rank']}, alpha {found['alpha']:g}, dropout {found['dropout']:g}"],
        ["initialization", "default" if found["init"] is True else str(found["init"])],
        ["trained from", found["continues"] or "scratch"],
        ["trained", f"{found['trained']:,} parameters{share}"],
        *([f"  {module}", _part(count, found)] for module, count in found["parameters"].items()),
        *([f"  {module}, in full", _part(count, found)] for module, count in found["in_full"].items()),
        [
            "biases",
            "none" if found["bias"] == "none" else f"{found['bias']}: they are the base's own, unload restores them",
        ],
        ["size on disk", size(found["bytes"])],
        ["path", found["path"]],
    ]
    print_table(("", found["name"]), rows, _cell)


@adapters.command()
@click.argument("first")
@click.argument("second")
@FOLDER
@JSON
def compare(first: str, second: str, folder: str, as_json: bool) -> None:
    """Compare two adapters: options, size and direction of their updates by module.

    \b
    fitune adapters compare demo demo-rank-32

    ‖ΔW‖ is the norm of an adapter's update of a module's weights. The cosine is 1 where both change the weights in the
    same direction, 0 where their changes are unrelated, −1 where they oppose each other.
    """
    from fitune.adapters import storage
    from fitune.adapters.locate import find_adapter
    from fitune.console import warn

    found = storage.compare(find_adapter(first, folder), find_adapter(second, folder))
    if as_json:
        print_json(found)
        return
    if not found["same_base"]:
        warn("the two belong to different bases: they cannot be combined")
    rows = [[key, *(_cell(value) for value in values), ""] for key, values in found["options"].items()]
    rows += [
        [f"‖ΔW‖ {module}", *(f"{norm:.4g}" for norm in one["norms"]), _cell(one["cosine"])]
        for module, one in found["modules"].items()
    ]
    print_table(("", *found["names"], "cosine"), rows, _cell)


@adapters.command()
@click.argument("parts", nargs=-1, required=True, metavar="NAME=WEIGHT NAME=WEIGHT...")
@click.option("--as", "new", required=True, help="Name of the new adapter, a folder below the folder of runs.")
@click.option("--kind", default="cat", show_default=True, help="cat, svd, linear, ties, dare_linear, dare_ties, …")
@click.option("--rank", type=click.IntRange(1), help="Rank of the result, for svd and …_svd.")
@click.option(
    "--density", type=float, help="Share of the values to keep, for ties, dare and magnitude_prune.  [default: 0.5]"
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for the values that dare drops."
)
@DEVICE
@FOLDER
@JSON
def combine(
    parts: tuple[str, ...],
    new: str,
    kind: str,
    rank: int | None,
    density: float | None,
    seed: int,
    device: str,
    folder: str,
    as_json: bool,
) -> None:
    """Combine several adapters into a new one, by weights.

    \b
    fitune adapters combine demo=0.7 yoda=0.3 --as both
    fitune adapters combine demo=1 yoda=1 --as both --kind ties_svd --density 0.3

    cat and svd sum the updates (cat adds the ranks, svd reduces the sum to one rank); linear adds the A and the B
    matrices, which also adds cross terms; ties and dare drop values before they add; magnitude_prune drops small values.
    Kinds that end in _svd work on the full updates and accept adapters of different rank.
    """
    from fitune.evaluation.combine_saved import combine_on_disk

    weights: list[tuple[str, float]] = []
    for part in parts:
        name, mark, value = part.rpartition("=")
        try:
            weights.append((name, float(value)))
        except ValueError:
            mark = ""
        if not mark:
            raise click.UsageError(f'"{part}" is not NAME=WEIGHT, for example demo=0.7')
    made = combine_on_disk(weights, new, kind, rank, density, seed, folder, device)
    if as_json:
        print_json(made.to_dict())
    else:
        click.echo(f"{made.report}\nsaved to {made.folder}")


@adapters.command()
@click.argument("name")
@click.argument("new")
@FOLDER
def rename(name: str, new: str, folder: str) -> None:
    """Rename an adapter: the folder of its run, or its own.

    \b
    fitune adapters rename demo pig-latin
    """
    from fitune.adapters import storage

    click.echo(storage.rename(name, new, folder))


@adapters.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Delete it even if it is the only copy.")
@FOLDER
def delete(name: str, yes: bool, folder: str) -> None:
    """Remove an adapter from the disk; never while a run uses it, the only copy only with --yes.

    \b
    fitune adapters delete old --yes

    A run's settings, metrics and checkpoints stay.
    """
    from fitune.adapters import storage

    click.echo(f"deleted {storage.delete(name, folder, only_copy=yes)}")


def _proving(step: str, text: str) -> click.Command:
    """merge, unmerge, unload: the step on a copy in memory, and what it did."""

    @click.argument("name")
    @click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16", "fp16"]))
    @DEVICE
    @FOLDER
    @JSON
    def command(name: str, precision: str, device: str, folder: str, as_json: bool) -> None:
        from fitune.adapters.locate import find_adapter
        from fitune.adapters.storage import title
        from fitune.evaluation import merge_check

        found = find_adapter(name, folder)
        made = getattr(merge_check, f"prove_{step}")(found, title(found), device, precision)
        if as_json:
            print_json(made.to_dict())
        else:
            click.echo("\n".join(made.lines()))

    return adapters.command(step, help=text)(command)


_proving(
    "merge",
    """Merge in memory and measure what it changes; nothing is written.

    \b
    fitune adapters merge demo
    fitune export demo --to merged          writes a merged model
    """,
)
_proving(
    "unmerge",
    """Merge and unmerge in memory, and measure how exactly the base is restored; nothing is written.

    \b
    fitune adapters unmerge demo
    """,
)
_proving(
    "unload",
    """Remove the adapter and compare the base bit by bit with a freshly loaded one; nothing is written.

    \b
    fitune adapters unload demo
    """,
)


def _origin(origin: str | None) -> str:
    return {"model": "the model's own", None: "unknown"}.get(origin, str(origin))


def _part(count: int, found: Described) -> str:
    share = "" if not found["total"] else f" ({count / found['total']:.2%})"
    return f"{count:,}{share}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
