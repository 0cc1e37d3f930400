"""The door to the data: names of files → checked rows, before any model is loaded.

What a method reads decides the way: plain rows (sft.py), pairs (preferences.py), judged answers (judged.py) or
prompts (prompts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitune.data.judged import prepare_judged, show_judged
from fitune.data.preferences import prepare_pairs, show_pairs
from fitune.data.prompts import prepare_prompts, show_prompts
from fitune.data.read.sources import DataOptions, PreparedData
from fitune.data.render.renderer import Renderer
from fitune.data.sft import prepare_rows, show_rows
from fitune.data.token_rows import TokenRow

# Kind of data → its way from a file's name to rows, and its first rows as training sees them.
PREPARE = {
    "rows": prepare_rows,
    "text": prepare_rows,
    "pairs": prepare_pairs,
    "judged": prepare_judged,
    "prompts": prepare_prompts,
}
SHOW = {
    "rows": show_rows,
    "text": show_rows,
    "pairs": show_pairs,
    "judged": show_judged,
    "prompts": show_prompts,
}


def prepare(
    train: str,
    eval_source: str | None,
    *,
    renderer: Renderer,
    eval_share: float = 0.0,
    exclude: Sequence[str] = (),
    **options: Any,
) -> PreparedData:
    """Read, recognise, render, tokenize and check.

    Args:
        eval_share: share of the training rows set aside when `eval_source` is None; rows that are equal stay together.
        exclude: sentences that the demo task must not make.
        options: fields of `DataOptions`.

    Raises:
        DataError: with every fault found, before a model is loaded.
    """
    how = DataOptions(**options)
    with renderer.limited():
        return PREPARE[how.reads](train, eval_source, renderer, how, eval_share, exclude)


def rows_to_show(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """The first rows as training sees them, each with its side: "", chosen, rejected, desirable,
    undesirable or prompt.

    Raises:
        DataError: as `prepare`; what only the check finds wrong is shown all the same.
    """
    with renderer.limited():
        return SHOW[options.reads](name, renderer, options, count)
