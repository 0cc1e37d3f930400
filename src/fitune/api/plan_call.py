"""`fitune.plan`: the memory of a run, as an object."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.api.train_call import dotted_changes
from fitune.console import be_quiet_in_a_notebook
from fitune.errors import PlanError

if TYPE_CHECKING:
    from fitune.planning.report.plan_report import View


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """A predicted run. `view` has every figure."""

    view: View

    @property
    def fits(self) -> bool | None:
        """Whether it fits the card; None without a card."""
        return None if self.view.card is None or not self.view.plan.traced else self.view.plan.fits

    @property
    def peak_bytes(self) -> int:
        """What nvidia-smi would show at the peak."""
        return self.view.plan.smi_peak_bytes

    def to_dict(self) -> dict[str, object]:
        """What `fitune plan --json` prints; sizes in bytes."""
        from fitune.planning.report.plan_report import as_dict

        return as_dict(self.view)

    def __repr__(self) -> str:
        from rich.console import Console

        from fitune.planning.report.terminal import print_plan

        console = Console(file=io.StringIO(), width=110, highlight=False)
        with console.capture() as captured:
            print_plan(console, self.view)
        return captured.get()

    def _repr_html_(self) -> str:
        from fitune.planning.report.plan_report import verdict
        from fitune.planning.report.svg import svg

        return f"<p><b>{verdict(self.view)}</b></p>{svg(self.view)}"


def plan(
    model: str | Path | None = None,
    *,
    gpu: str | None = None,
    budget: str | None = None,
    data: str | Path | None = None,
    seq_len: int | None = None,
    **changes: object,
) -> MemoryPlan:
    """Predict the memory of a run as `fitune plan` does, without a GPU and without weights.

        fitune.plan("Qwen/Qwen2.5-7B", gpu="RTX 4090", seq_len=2048, model={"quantization": "nf4"})

    Args:
        model: a hub id, a folder, a config.json, a GGUF file or a built-in model.
        gpu: a card by name; None takes the one that is here. budget: an amount of memory instead, such as "16GiB".
        data: rows to train on; the plan takes their longest batch.
        seq_len: length of the rows in tokens, instead of data.
        changes: other settings, as in `fitune.train`.

    Raises:
        PlanError, ModelError, SettingsError: with the value and the remedy.
    """
    be_quiet_in_a_notebook()
    import click

    from fitune.api.plan_question import PlanOptions, ask

    options = PlanOptions(
        data_file=None if data is None else str(data),
        seq_len=seq_len,
        gpu_name=gpu,
        budget=budget,
        ladder=False,
        explain=False,
        as_json=False,
        svg_file=None,
        html_file=None,
        expandable_segments=False,
        gpus=1,
        strategy=None,
    )
    name = None if model is None else str(model)
    try:
        asked = ask(name, [], dotted_changes(changes), options)
    except click.UsageError as error:
        raise PlanError(error.message) from error
    scenario = asked.scenario()
    return MemoryPlan(asked.view(scenario, asked.plan(scenario)))
