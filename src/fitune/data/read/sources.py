"""What every method's way through the data shares: reading a source, turning its rows, setting some aside.

In: a name and `DataOptions`. Out: rows with a recognised form; `PreparedData` is what all the ways end in.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fitune.data.examples import Example
from fitune.data.read.files import Rows, joined, read_rows, write_jsonl
from fitune.data.read.mixture import MixedForm, sources_in, taken_by_weight
from fitune.data.read.read_facts import ReadFacts, RowLeftOut
from fitune.data.read.recognise import recognise
from fitune.data.read.recognised_form import RecognisedForm
from fitune.data.render.time_limit import TemplateTooSlow
from fitune.data.reports.counting import DataReport
from fitune.demo.tasks import demo_rows as make_demo_rows
from fitune.demo.tasks import is_demo
from fitune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAULTS_SHOWN = 5
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Rows ready to train and to evaluate on. `hashes` are SHA-256 of the files as they were read.

    `train` and `eval` hold what the method reads (token_rows.py): `TokenRow`, `PairRow`, `JudgedRow` or `PromptRow`;
    `thinking` says whether the answers that are trained have reasoning: all, none, or (None) some;
    `system` is the system prompt that all their conversations begin with, if there is one;
    `train_read` and `eval_read` say what was read of their sources (`eval_read` is None where held-out rows were set aside).
    """

    train: Sequence[Any]
    eval: Sequence[Any]
    train_examples: Sequence[Example]
    eval_examples: Sequence[Example]
    train_report: DataReport
    eval_report: DataReport | None
    hashes: dict[str, str]
    train_read: ReadFacts | None = None
    eval_read: ReadFacts | None = None
    thinking: bool | None = None
    system: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything worth showing, held-out rows' after the training rows'."""
        own = (*(self.train_read.warnings if self.train_read else ()), *self.train_report.warnings)
        held_out = (
            *(self.eval_read.warnings if self.eval_read else ()),
            *(self.eval_report.warnings if self.eval_report else ()),
        )
        return own + tuple(f"held-out rows: {text}" for text in held_out)


@dataclass(frozen=True)
class DataOptions:
    """How rows are read, rendered and limited; the plain values of the settings' data section."""

    reads: str = "rows"
    """What the method reads, a kind of `DataForm`."""
    form: str = "auto"
    columns: Mapping[str, str] | None = None
    system: str | None = None
    loss_on: str = "auto"
    response_template: str | None = None
    max_length: int | None = None
    too_long: str = "error"
    bad_rows: str = "error"
    hub_split: str = "train"
    seed: int = 42


def demo_rows(name: str, tokenizer: PreTrainedTokenizerBase, seed: int, exclude: Sequence[str] = ()) -> Rows:
    """The rows of a demo task as if they had been read.

    Raises:
        DataError: no such task.
    """
    rows = make_demo_rows(name, tokenizer, seed, exclude)
    return Rows(name=name, rows=rows, numbers=tuple(range(1, len(rows) + 1)), sha256=f"generated, seed {seed}")


def read_source(
    name: str, tokenizer: PreTrainedTokenizerBase, options: DataOptions, exclude: Sequence[str] = ()
) -> tuple[Rows, RecognisedForm]:
    """Rows of a file, a folder, the hub or a demo task, or of several of them, and the form that the method can read.

    Raises:
        DataError: unreadable, or of no form that fits the method.
    """
    sources, found = sources_in(name), []
    for source in sources:
        rows = (
            demo_rows(source.name, tokenizer, options.seed, exclude)
            if is_demo(source.name)
            else read_rows(source.name, options.hub_split)
        )
        rows = taken_by_weight(rows, source.weight, options.seed)
        mapping = options.columns if len(sources) == 1 else _mapping_of(rows, options.columns)
        form = recognise(rows.columns, options.form, mapping, options.reads, rows.rows[0])
        found.append((form.spread(rows), form))
    if len(found) == 1:
        return found[0]
    whole = joined(name, [rows for rows, _ in found])
    _check_mapping(whole, options.columns)
    return whole, MixedForm.of([form for _, form in found], [last for _, _, last in whole.parts])


def _mapping_of(rows: Rows, columns: Mapping[str, str] | None) -> dict[str, str]:
    """What of `data.columns` is about one of several sources."""
    return {own: theirs for own, theirs in (columns or {}).items() if theirs in rows.columns}


def _check_mapping(rows: Rows, columns: Mapping[str, str] | None) -> None:
    for own, theirs in (columns or {}).items():
        if theirs not in rows.columns:
            raise DataError(f'data.columns maps {own} to "{theirs}", which none of the sources has')


def refuse_missing(name: str) -> None:
    """Raise DataError for a source that names a file which is not there; nothing is read, and the hub is not asked."""
    for source in sources_in(name):
        here = not (source.name.startswith("hub:") or is_demo(source.name))
        if here and not Path(source.name).expanduser().exists():
            read_rows(source.name)


def convert_all(
    rows: Rows,
    form: RecognisedForm,
    convert: Callable[[Mapping[str, object], int], Item],
    bad_rows: str = "error",
) -> list[Item]:
    """Every row turned; rows that teach nothing are left out and counted in the form's tally.

    Args:
        bad_rows: drop leaves rows out that cannot be used, and counts them likewise.

    Raises:
        DataError: rows that are not of the form (several are listed), or none left.
    """
    items: list[Item] = []
    faults: list[str] = []
    with without_collection():
        for row, number in zip(rows.rows, rows.numbers, strict=True):
            try:
                items.append(convert(row, number))
            except RowLeftOut as error:
                form.tally.leave_out(str(error), number)
            except TemplateTooSlow:
                raise
            except DataError as error:
                if bad_rows == "drop":
                    form.tally.drop(error, number)
                else:
                    faults.append(f"{error}{rows.place(number)}")
    refuse_rows(f"{rows.name} ({form.name})", faults, len(rows.rows))
    if not items:
        reasons = "; ".join(form.tally.left_out)
        raise DataError(f"{rows.name} ({form.name}): no row is left to train on: {reasons}")
    return items


@contextmanager
def without_collection() -> Generator[None]:
    """No cyclic garbage collection: over millions of objects that are all kept it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_facts(rows: Rows, form: RecognisedForm) -> ReadFacts:
    """What was read of a source; asked after its rows were turned."""
    return ReadFacts.of(rows, form.name, form.tally)


def refuse_rows(name: str, faults: Sequence[str], rows: int) -> None:
    """Raises DataError when there are faults: how many of the rows have one, and the first of them."""
    if not faults:
        return
    more = f"\n  … and {len(faults) - FAULTS_SHOWN:,} more" if len(faults) > FAULTS_SHOWN else ""
    listed = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
    raise DataError(f"{name}: {len(faults):,} of {rows:,} rows cannot be used\n{listed}{more}")


def set_aside(
    items: Sequence[Item], share: float, seed: int, key: Callable[[Item], Hashable]
) -> tuple[list[Item], list[Item]]:
    """(training, test) items. Items of equal keys are never on both sides; at least one is kept for each side."""
    if share == 0 or len(items) < 2:
        return list(items), []
    keys = [key(item) for item in items]
    distinct = list(dict.fromkeys(keys))
    random.Random(seed).shuffle(distinct)
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    held_out = set(distinct[:count])
    sides: tuple[list[Item], list[Item]] = ([], [])
    for item, own in zip(items, keys, strict=True):
        sides[own in held_out].append(item)
    return sides


def example_key(example: Example) -> str:
    """What makes two examples equal."""
    return repr((example.messages or example.text, example.tools))


def split_file(path: Path, share: float, seed: int, out_train: Path, out_test: Path) -> tuple[int, int]:
    """Split a data file into two JSON Lines files, no row in both; returns their numbers of rows.

    Raises:
        DataError: unreadable, too few rows, or a file that exists.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; use a share between 0 and 1, for example 0.1")
    for out in (out_train, out_test):
        if out.exists():
            raise DataError(f"{out} exists already; name another file or delete it")
    rows = read_rows(str(path)).rows
    if len(rows) < 2:
        raise DataError(f"{path} has 1 row; two are needed to split it")
    train, test = set_aside(rows, share, seed, key=repr)
    return write_jsonl(train, out_train), write_jsonl(test, out_test)
