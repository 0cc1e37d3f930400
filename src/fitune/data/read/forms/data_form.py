"""What a data form is: its columns, who can read it, and how a row of it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fitune.data.examples import Judged, Pair
from fitune.data.read.forms.cells import Cells, Messages


@dataclass(frozen=True, kw_only=True)
class DataForm:
    """One way of laying out a row. Exactly one of `conversation`, `text`, `pair` and `judged` reads it.

    Attributes:
        name: as in `data.form`.
        needs: columns that every file of this form has; it is recognised by them.
        may_have: columns that are read where a file has them.
        kinds: what methods may read it as: rows (conversations or plain text), text (plain text alone), pairs, judged
            (single answers with a judgement) or prompts.
        first_for: kinds for which it is tried before the forms that stand before it.
        answer_column: the column that holds the answer and nothing else; a file of questions may lack it.
        loss_on: the tokens that `data.loss_on: auto` trains.
        unpack: the row that `conversation` reads, its tools and its system prompt too, where it is packed into other columns.
        fits: whether the first row is of this form, where columns alone do not tell.
        spread: the rows that one row stands for.
        conversation: the messages of a row, without a system prompt that is added.
        text: the row as plain text.
        pair: a prompt with a better and a worse answer.
        judged: a prompt with an answer that is wanted or not.
        example: a row, for the documents.

    The readers raise `DataError` for a row that is not of the form; `Cells` has the usual checks.
    """

    name: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()
    kinds: tuple[str, ...]
    first_for: tuple[str, ...] = ()
    answer_column: str | None = None
    loss_on: str = "assistant"
    unpack: Callable[[Cells], Mapping[str, object]] | None = None
    fits: Callable[[Mapping[str, object]], bool] | None = None
    spread: Callable[[Mapping[str, object]], Sequence[Mapping[str, object]]] | None = None
    conversation: Callable[[Cells], Messages] | None = None
    text: Callable[[Cells], str] | None = None
    pair: Callable[[Cells], Pair] | None = None
    judged: Callable[[Cells], Judged] | None = None
    example: Mapping[str, object]
