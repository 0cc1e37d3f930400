"""The search up the fit ladder: the fastest configuration that fits, in few plans.

In: what the run would be, which of its settings are open, and a function from changed settings to a `Plan`.
Out: a frozen `Ladder`, or a `DoesNotFit` that names the nearest miss and the cheapest way out.
Knows nothing of settings objects, cards or traces. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from fitune.errors import DoesNotFit, PlanError
from fitune.models.quantization import QUANTIZATIONS, rungs_below
from fitune.ops.optimizers import OPTIMIZERS
from fitune.planning.predict import Plan
from fitune.planning.search.ladder import (
    CHECKPOINTING,
    EIGHT_BIT_HANDICAP,
    KEYS,
    LENGTH,
    MICRO,
    OFFLOADING,
    OPTIMIZER,
    QUANTIZATION,
    SAME,
    TILES,
    TUNING,
    Changes,
    Ladder,
    PlanOf,
    Start,
    Step,
    Value,
    price_of,
    shown,
)
from fitune.sizes import size_in

# What costs time alone and is switched on, in the order of its price.
RECOMPUTING = (CHECKPOINTING, TILES, OFFLOADING)


def climb(start: Start, plan_of: PlanOf, possible: Callable[[Changes], bool] = lambda _: True) -> Ladder:
    """The fastest configuration that fits, on the cheapest level on which any fits.

    Args:
        plan_of: changed settings → plan; its ``fits`` decides, its ``seconds_per_step`` ranks.
        possible: whether training takes these changes together.

    Raises:
        DoesNotFit: nothing that was left open fits.
    """
    search = _Search(start, plan_of, possible)
    asked = search.plan({})
    if asked is None:
        raise PlanError("what was asked cannot be trained, so there is nothing to fit")
    if asked.fits:
        return Ladder(asked=asked, changes={}, steps=(), tried=len(search.known))
    for level in search.levels(start.fixed):
        best = search.best_of(level)
        if best is not None:
            return Ladder(asked=asked, changes=best, steps=search.steps(best), tried=len(search.known))
    raise DoesNotFit(search.way_out(asked))


class _Search:
    """Plans that were made, by their changes, and the questions put to them."""

    def __init__(self, start: Start, plan_of: PlanOf, possible: Callable[[Changes], bool]):
        self.start = start
        self.plan_of = plan_of
        self.possible = possible
        self.known: dict[tuple[tuple[str, Value], ...], Plan | None] = {}

    def plan(self, changes: Changes) -> Plan | None:
        """The plan of a configuration; None when it cannot be trained."""
        changes = self.differing(changes)
        key = tuple(sorted(changes.items()))
        if key not in self.known:
            self.known[key] = self.plan_of(changes) if self.possible(changes) else None
        return self.known[key]

    def differing(self, changes: Changes) -> Changes:
        """Without what is as asked."""
        return {key: value for key, value in changes.items() if self.start.values.get(key) != value}

    def values(self, key: str, fixed: frozenset[str]) -> list[Value]:
        """Values of one setting, as asked first, the smallest need last."""
        now = self.start.values[key]
        if key in fixed:
            return [now]
        if key == MICRO:
            return [*self.micro_rows(fixed)]
        if key == OPTIMIZER:
            return [now, lighter] if (lighter := OPTIMIZERS[str(now)].lighter) else [now]
        if key == TUNING:
            return [now, "lora"] if now == "full" else [now]
        if key == QUANTIZATION:
            bits = QUANTIZATIONS[now].bits if isinstance(now, str) and now in QUANTIZATIONS else math.inf
            return [now, *rungs_below(bits)]
        return [now, *(length for length in self.start.lengths if not isinstance(now, int) or length < now)]

    def micro_rows(self, fixed: frozenset[str]) -> list[int]:
        """Rows of a forward pass that divide the batch, as asked first, the fewest last."""
        now = self.start.values[MICRO]
        assert isinstance(now, int)
        if MICRO in fixed:
            return [now]
        return [size for size in range(now, 0, -1) if self.start.batch_rows % size == 0]

    def recomputing(self, fixed: frozenset[str]) -> list[Changes]:
        """Gradient checkpointing, tiles and layer inputs on the host: as asked, then one after the other beside the last."""
        found: list[Changes] = [{key: self.start.values[key] for key in RECOMPUTING if key in self.start.values}]
        for key in found[0]:
            last = found[-1]
            without_inputs = key == OFFLOADING and not last.get(CHECKPOINTING)
            if key not in fixed and not last[key] and not without_inputs:
                found.append({**last, key: True})
        return found

    def levels(self, fixed: frozenset[str]) -> Iterable[Changes]:
        """What changes the learning, cheapest first."""
        axes = [self.values(key, fixed) for key in (LENGTH, QUANTIZATION, TUNING)]
        for length, quantization, tuning in product(*axes):
            yield {LENGTH: length, QUANTIZATION: quantization, TUNING: tuning}

    def smallest(self, level: Changes, fixed: frozenset[str]) -> Changes:
        """The configuration of a level that needs least."""
        least = {key: self.values(key, fixed)[-1] for key in (MICRO, OPTIMIZER)}
        return {**level, **self.recomputing(fixed)[-1], **least}

    def best_of(self, level: Changes) -> Changes | None:
        """The fastest of a level that fits, or None."""
        fixed = self.start.fixed
        smallest = self.plan(self.smallest(level, fixed))
        if smallest is None or not smallest.fits:
            return None
        sizes = self.micro_rows(fixed)
        found: list[tuple[float, int, Changes]] = []
        most_rows = 0
        for recomputing in self.recomputing(fixed):
            for optimizer in self.values(OPTIMIZER, fixed):
                # More concessions pay only where they let more rows in at once.
                larger = [size for size in sizes if size > most_rows]
                here = {**level, **recomputing, OPTIMIZER: optimizer}
                rows = self.most_rows(here, larger)
                if rows is None:
                    continue
                most_rows, changes = rows, {**here, MICRO: rows}
                plan = self.plan(changes)
                assert plan is not None
                handicap = EIGHT_BIT_HANDICAP if optimizer != self.start.values[OPTIMIZER] else 1.0
                cost = (plan.seconds_per_step or float("inf")) * handicap
                found.append((cost, len(found), self.differing(changes)))
        return min(found)[2] if found else None

    def most_rows(self, here: Changes, sizes: Sequence[int]) -> int | None:
        """The most rows of a forward pass that fit, of ``sizes`` (largest first): more rows never need less."""
        low, high = 0, len(sizes)  # all before low do not fit, all from high on do
        while low < high:
            middle = (low + high) // 2
            plan = self.plan({**here, MICRO: sizes[middle]})
            if plan is not None and plan.fits:
                high = middle
            else:
                low = middle + 1
        return sizes[low] if low < len(sizes) else None

    def steps(self, chosen: Changes) -> tuple[Step, ...]:
        """The chosen concessions one upon the other, each with its plan."""
        found: list[Step] = []
        so_far: Changes = {}
        # A quantized base needs LoRA, which is cheaper: the order of prices is one that can be trained.
        for key in (key for key in KEYS if key in chosen):
            so_far[key] = chosen[key]
            plan = self.plan(so_far)
            assert plan is not None
            name, quality = self.price(key, chosen[key])
            found.append(Step(key=key, value=chosen[key], name=name, quality=quality, plan=plan))
        return tuple(found)

    def price(self, key: str, value: Value) -> tuple[str, str]:
        """(name, cost in quality) of a concession."""
        if key == MICRO and isinstance(value, int):
            times = self.start.batch_rows // value
            return f"micro-batches of {value} {'row' if value == 1 else 'rows'}, {times} a step", SAME
        if key == LENGTH and isinstance(value, int):
            lost = 1 - self.start.kept_share(value)
            return f"rows of at most {value:,} tokens", f"{lost:.1%} of the rows are left out"
        return price_of(key, value)

    # ---- nothing fits

    def way_out(self, asked: Plan) -> str:
        """The sentence for `DoesNotFit`: what is nearest, and what would be cheapest to give up."""
        fixed = self.start.fixed
        misses = [(plan.smi_peak_bytes, n, level) for n, (plan, level) in enumerate(self._corners(fixed))]
        need, _, level = min(misses)
        nearest = self.differing(self.smallest(level, fixed))
        whole = max(need, asked.smi_peak_bytes)
        tried = (
            f"the nearest is {self._named(nearest)} at {size_in(need, whole)}" if nearest else "nothing is left open"
        )
        head = f"as asked the run needs {size_in(asked.smi_peak_bytes, whole)}; {tried}"
        closed = [key for key in KEYS if key in fixed and (key != LENGTH or self.start.lengths)]
        for free in [*([key] for key in closed), closed] if closed else []:
            found = self._first_corner(fixed.difference(free))
            if found is None:
                continue
            plan, changes = found
            ours = {key: value for key, value in changes.items() if key in free}
            words = ", ".join(f"{key} {shown(value)}" for key, value in ours.items())
            allow = ", ".join(ours)
            return (
                f"{head}. Cheapest way out: {self._named(ours)}, which would fit with {size_in(plan.smi_peak_bytes, whole)}: "
                f"set {words}, or allow it with memory.may_change [{allow}]"
            )
        return (
            f"{head}. Nothing that fitune can change makes it fit: take a smaller model, shorter rows or a larger card"
        )

    def _corners(self, fixed: frozenset[str]) -> Iterable[tuple[Plan, Changes]]:
        for level in self.levels(fixed):
            plan = self.plan(self.smallest(level, fixed))
            if plan is not None:
                yield plan, level

    def _first_corner(self, fixed: frozenset[str]) -> tuple[Plan, Changes] | None:
        """The cheapest level of which the smallest configuration fits."""
        for plan, level in self._corners(fixed):
            if plan.fits:
                return plan, self.differing(self.smallest(level, fixed))
        return None

    def _named(self, changes: Changes) -> str:
        return " with ".join(self.price(key, changes[key])[0] for key in KEYS if key in changes)
