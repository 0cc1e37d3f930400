"""What the ranks of a run decide together: facts gathered, work that one of them does, errors that all of them raise.

In: small Python values and functions. Out: the same answer on every rank, or the same error.
A rank that dies is noticed here by the others, at the latest when the time limit of a wait is over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fitune.distributed import ranks
from fitune.errors import FituneError, RunError, ToldByFirst

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
WAIT_SECONDS = 30 * 60.0
LEAVE_SECONDS = 20.0


def start() -> None:
    """Join the other ranks: NCCL between GPUs, gloo between CPUs and for everything small. Again: nothing.

    Raises:
        RunError: the ranks do not find each other, or there are more of them on this machine than GPUs.
    """
    import torch
    from torch import distributed

    if ranks.size() == 1:
        return
    if not distributed.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            if ranks.local_rank() >= gpus:
                raise RunError(f"{ranks.local_rank() + 1} processes were started on a machine with {gpus} GPUs")
            torch.cuda.set_device(ranks.local_rank())
            backend = "cpu:gloo,cuda:nccl"
        try:
            distributed.init_process_group(backend, timeout=timedelta(seconds=WAIT_SECONDS))
        except (RuntimeError, ValueError, torch.distributed.DistError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RunError(f"the {ranks.size()} ranks do not find each other at {where}: {_line(error)}") from error
    _control()


@cache
def _control() -> ProcessGroup:
    """The group for small values, over the CPU."""
    from torch import distributed

    return cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_SECONDS)))


def gather(value: T, doing: str) -> list[T]:
    """``value`` of every rank, by rank.

    Args:
        doing: what the ranks were about, for the error.

    Raises:
        RunError: a rank is gone, or did not come in time.
    """
    if ranks.size() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * ranks.size()
    try:
        distributed.all_gather_object(found, value, group=_control())
    except RuntimeError as error:
        raise _lost(doing, error) from error
    return found


def wait(doing: str, seconds: float) -> None:
    """Until every rank is here.

    Raises:
        RunError: some did not come in time; it names them.
    """
    if ranks.size() == 1:
        return
    from torch import distributed

    try:
        distributed.monitored_barrier(_control(), timedelta(seconds=seconds), wait_all_ranks=True)
    except RuntimeError as error:
        late = sorted({int(number) for number in re.findall(r"[Rr]anks? (\d+)", str(error))} - {ranks.rank()})
        if "imed out" in str(error) or "failed to pass" in str(error):
            who = f"rank {', '.join(map(str, late))}" if late else "another rank"
            raise _told(f"{who} did not arrive within {seconds:g} s while {doing}") from error
        raise _lost(doing, error) from error


def everywhere(doing: str, work: Callable[[], T]) -> T:
    """``work()`` on every rank; when it fails on one, every rank fails with that rank's error.

    Raises:
        FituneError: of the first rank that has one.
    """
    if ranks.size() == 1:
        return work()
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    agree(failure, doing)
    return cast(T, result)


def agree(failure: Exception | None, doing: str) -> None:
    """Raise on every rank what one of them met with; the sentence is rank 0's to tell."""
    raise_first(gather(error_text(failure), doing), failure)


def raise_first(texts: Sequence[str | None], own: Exception | None) -> None:
    """Raise the error of the first rank that has one.

    Args:
        texts: of every rank, None where it has none.
        own: this rank's error.
    """
    first = next((rank for rank, text in enumerate(texts) if text is not None), None)
    if first is None:
        return
    if own is not None and (ranks.is_first() or not isinstance(own, FituneError)):
        raise own
    alike = all(text == texts[first] for text in texts)
    raise _told(f"{'' if first == 0 or alike else f'rank {first}: '}{texts[first]}") from own


def by_first(doing: str, work: Callable[[], T], seconds: float = WAIT_SECONDS) -> T:
    """What ``work()`` returns on rank 0, on every rank; it can be pickled.

    Args:
        seconds: the longest that the others wait for it.

    Raises:
        FituneError: rank 0's.
    """
    if ranks.size() == 1:
        return work()
    failure: Exception | None = None
    result: T | None = None
    if ranks.is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
    wait(doing, seconds)
    found = gather((error_text(failure), result), doing)
    raise_first([text for text, _ in found], failure)
    return cast(T, found[0][1])


def same(values: dict[str, object], doing: str) -> None:
    """Raise `RunError` when a rank has another value than rank 0, with the name of the first that differs."""
    everyone = gather(values, doing)
    for number, theirs in enumerate(everyone):
        for name, wanted in everyone[0].items():
            if theirs.get(name) != wanted:
                raise _told(
                    f"rank {number} has another {name} than rank 0 ({theirs.get(name)} instead of {wanted}); "
                    "give all machines the same environment, recipe and data"
                )


def leave() -> None:
    """Wait a moment for the others before this process ends: whoever started them ends them all with the first."""
    if ranks.size() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        with suppress(RunError):
            wait("the run ends", LEAVE_SECONDS)
        with suppress(RuntimeError):
            distributed.destroy_process_group()
        _control.cache_clear()


def error_text(failure: Exception | None) -> str | None:
    """What the other ranks are told of an error; None where there is none."""
    if failure is None or isinstance(failure, FituneError):
        return None if failure is None else str(failure)
    return f"{type(failure).__name__}: {_line(failure)}"


def told(error: FituneError) -> FituneError:
    """An error that every rank has, as each of them raises it."""
    return error if ranks.is_first() else ToldByFirst(str(error))


def _told(text: str) -> RunError:
    return RunError(text) if ranks.is_first() else ToldByFirst(text)


def _lost(doing: str, error: Exception) -> RunError:
    return _told(f"rank {ranks.rank()} lost another rank while {doing} ({_line(error)}); the run can be resumed")


def _line(error: Exception) -> str:
    """The first sentence of an error of torch, which appends stacks."""
    return str(error).strip().split("\n")[0][:200]
