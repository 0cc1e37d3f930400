"""The border is found, by few predictions, whatever the curve."""

from __future__ import annotations

import pytest

from fitune.planning.predict import Plan
from fitune.planning.search.max_fit import largest

CARD = 1_000_000


def plan_of(need: int) -> Plan:
    return Plan(need, need, need, {"weights": need}, "step 2", {}, fits=need <= CARD)


CURVES = {
    "line": lambda n: 1000 + 37 * n,
    "square": lambda n: 1000 + n * n,
    "root": lambda n: 1000 + round(20_000 * n**0.5),
    "steps": lambda n: 1000 + 50_000 * (n // 100),
    "flat, then a cliff": lambda n: 1000 if n < 777 else 2 * CARD,
}


@pytest.mark.parametrize("start", [1, 50, 5000])
@pytest.mark.parametrize("name", CURVES)
def test_the_border_is_exact(name: str, start: int) -> None:
    need = CURVES[name]
    limit = largest(lambda n: plan_of(need(n)), CARD, ceiling=2**20, start=start)
    # The reference is a plain count from 1.
    expected = next(n for n in range(1, 2**20) if need(n) > CARD) - 1
    assert limit.value == expected and limit.too_large == expected + 1
    assert limit.plan.fits and limit.too_large_plan is not None and not limit.too_large_plan.fits
    assert limit.tried <= 45


def test_a_straight_line_takes_few_predictions() -> None:
    limit = largest(lambda n: plan_of(CURVES["line"](n)), CARD, ceiling=2**20, start=1024)
    assert limit.value == 27_000 and limit.tried <= 8


def test_no_size_is_predicted_twice() -> None:
    asked: list[int] = []

    def at(size: int) -> Plan:
        asked.append(size)
        return plan_of(CURVES["square"](size))

    limit = largest(at, CARD, ceiling=4000)
    assert len(asked) == len(set(asked)) == limit.tried


def test_steps_and_a_ceiling_between_two_steps() -> None:
    limit = largest(lambda n: plan_of(n), CARD, ceiling=2050, start=1024, step=64)
    assert limit.value == 2050 and limit.too_large is None and limit.too_large_plan is None
    limit = largest(lambda n: plan_of(1000 * n), CARD, ceiling=2050, start=1024, step=64)
    assert (limit.value, limit.too_large) == (960, 1024)


def test_nothing_fits() -> None:
    limit = largest(lambda n: plan_of(CARD + n), CARD, ceiling=4096, start=512, step=64)
    assert limit.value is None and limit.too_large == 64 and not limit.plan.fits


@pytest.mark.parametrize("wrong", [{"ceiling": 0}, {"ceiling": 5, "start": 0}, {"ceiling": 5, "step": -1}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="use 1 or more"):
        largest(lambda n: plan_of(n), CARD, **wrong)
