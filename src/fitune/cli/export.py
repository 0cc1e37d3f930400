"""`fitune export`: export a result, with a report of how faithful the copy is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from fitune.cli.options.shared import DEVICE, FOLDER, print_json
from fitune.exporting.forms import EXPORT_FORMS, gguf_forms
from fitune.exporting.gguf.gguf_types import GGUF_TYPES

if TYPE_CHECKING:
    from rich.table import Table

    from fitune.exporting.fidelity import Report

BITS = [str(bits) for bits in dict.fromkeys(kind.bits for kind in GGUF_TYPES.values())]


@click.command()
@click.argument("target")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(list(EXPORT_FORMS)),
    help=" ".join(f"{form.name}: {form.words}." for form in EXPORT_FORMS.values()),
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A new folder.  [default: export/FORM in the run's folder]"
)
@click.option(
    "--type",
    "gguf_type",
    default="f16",
    show_default=True,
    type=click.Choice(list(GGUF_TYPES), case_sensitive=False),
    help=f"For {gguf_forms()}: how weights are stored; {', '.join(BITS[:-1])} or {BITS[-1]} bits.",
)
@click.option(
    "--imatrix",
    "importance",
    metavar="run|FILE",
    help="Measure an importance matrix for types below 16 bits, on the run's training rows or on a data file.",
)
@click.option("--base", help="The adapter's 16-bit base, if it has moved: a folder, a hub id, a GGUF file.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(),
    help="Prompts of the fidelity report.  [default: the run's held-out rows]",
)
@click.option(
    "--num-prompts", default=20, show_default=True, type=click.IntRange(1), help="Number of prompts in the report."
)
@click.option("--allow-pickled", is_flag=True, help="Load pickled weights of a model that has no safetensors.")
@FOLDER
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(
    target: str,
    form: str,
    out: Path | None,
    gguf_type: str,
    importance: str | None,
    base: str | None,
    prompts_file: str | None,
    num_prompts: int,
    allow_pickled: bool,
    folder: str,
    device: str,
    as_json: bool,
) -> None:
    """Write a copy of TARGET (a run, an adapter folder or a model) for use elsewhere, and measure how faithful it is.

    \b
    fitune export demo --to merged
    fitune export demo --to gguf --type q8_0
    fitune export demo --to ollama && ollama create demo -f runs/demo/export/ollama-f16/Modelfile

    Every copy is read back and compared with the original on the same prompts; fidelity.json next to it has the
    figures. The folder appears once the export is complete; nothing is overwritten.
    """
    from fitune.exporting.export import export as write
    from fitune.exporting.forms import EXPORT_FORMS

    asked = click.get_current_context().get_parameter_source("gguf_type")
    if asked is ParameterSource.COMMANDLINE and not EXPORT_FORMS[form].takes_gguf_type:
        raise click.UsageError(
            f"--type {gguf_type} is for gguf and ollama, and --to is {form}, which has no types; leave it out"
        )
    done = write(
        target,
        form,
        out,
        gguf_type=gguf_type.lower(),
        base_name=base,
        num_prompts=num_prompts,
        prompts_file=prompts_file,
        importance=importance,
        device=device,
        runs_folder=folder,
        allow_pickled=allow_pickled,
    )
    if as_json:
        data = {
            "folder": str(done.folder), "main": str(done.main), "bytes": done.num_bytes,
            "fidelity": done.report.to_dict(),
        }  # fmt: skip
        print_json(data)
        return
    from fitune.console import stdout_console

    for note in done.report.notes:
        stdout_console().print(note)
    stdout_console().print(_table(done.report))
    stdout_console().print(str(done.main))


def _table(report: Report) -> Table:
    """A row a copy; below them what was compared."""
    from rich.table import Table

    same = "not compared" if report.prompts_same is None else f"the same in {report.prompts_same} of {report.prompts}"
    table = Table(
        "copy", "largest Δ logit", "mean Δ logit", "KL, nats a token", "tokens same", "answers same",
        title=f"fidelity, against {report.reference}",
        caption=f"{report.prompts} prompts, {report.tokens} answered tokens, in {report.arithmetic}; "
        f"token ids of prompts {same}",
    )  # fmt: skip
    for row in report.rows:
        table.add_row(
            row.copy, f"{row.largest:.3g}", f"{row.mean:.3g}", f"{row.divergence:.2g}",
            f"{row.tokens_same:.1%}", f"{row.answers_same:.0%}",
        )  # fmt: skip
    return table
