"""One written value → the value of a setting, or the fault.

In: a `Field` and what the user wrote (a YAML value, or text from the command line). Out: the value, or one sentence.
"""

from __future__ import annotations

import math

from fitune.config.fields import Field
from fitune.errors import did_you_mean

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
EXAMPLES = {
    "data.columns": "prompt=question,completion=answer",
    "data.train": "my.jsonl",
    "data.eval": "my-test.jsonl",
    "lora.continue_from": "runs/first",
    "lora.targets": "q_proj,v_proj",
    "memory.budget": "16GiB",
    "memory.may_change": "data.max_length",
    "lora.modules_to_save": "lm_head",
    "model.merge": "runs/first",
    "model.unquantized": "down_proj",
    "rl.rewards": "pig_latin,0.2*length:20",
    "run.report_to": "tensorboard",
    "train.learning_rate": "2e-4",
    "train.micro_batch_size": "2",
}


class Misfit(ValueError):
    """A value that does not fit; the message goes on after the setting's place: ``is 0; use 1 or more``."""


def fit(field: Field, value: object, is_text: bool = False) -> object:
    """The value in the setting's own type.

    Args:
        is_text: from the command line, where everything is text: ``null``, ``8``, ``a,b`` and ``k=v`` are read.

    Raises:
        Misfit: it has another type, or lies outside the choices or the range.
    """
    if is_text and value == "null":
        value = None
    if value is None:
        if field.nullable:
            return None
        raise Misfit(f"is null; use {field.kind}{_example(field)}")
    if value is False and "off" in field.choices:
        return "off"  # YAML 1.1 reads off as false
    if isinstance(value, str) and value in field.choices:
        return value
    for kind in field.kinds:
        fitted = _as(kind, value, is_text)
        if fitted is not None:
            return _checked(field, fitted)
    if field.choices and isinstance(value, str) and not field.kinds:
        raise Misfit(f"is {shown(value)}{did_you_mean(value, field.choices)}; use {field.kind}")
    raise Misfit(f"is {shown(value)}; {_advice(field, value)}")


def shown(value: object) -> str:
    """A value as the user may recognise it: ``"text"``, ``true``, ``null``, ``[a, b]``."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, list):
        return f"[{', '.join(shown(item) for item in value[:5])}{', ...' if len(value) > 5 else ''}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in list(value.items())[:5])}}}"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _as(kind: type, value: object, is_text: bool) -> object:
    """``value`` as ``kind``; None when it is something else."""
    if kind is bool:
        word = value.lower() if is_text and isinstance(value, str) else value
        return True if word is True or word in TRUE else False if word is False or word in FALSE else None
    if isinstance(value, bool):
        return None
    if kind is int:
        return _number(int, value) if is_text else value if isinstance(value, int) else None
    if kind is float:
        # YAML 1.1 reads 1e-3 (no dot) as text.
        number = _number(float, value) if isinstance(value, str) else value
        return float(number) if isinstance(number, int | float) else None
    if kind is list and is_text and isinstance(value, str):
        return [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    if kind is dict and is_text and isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        return {name.strip(): text.strip() for name, _, text in pairs} if all(mark for _, mark, _ in pairs) else None
    return value if isinstance(value, kind) else None


def _number(kind: type[int] | type[float], text: object) -> int | float | None:
    try:
        return kind(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _checked(field: Field, value: object) -> object:
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise Misfit(
                    f"contains {shown(item)}, which is not text; write names, for example [{EXAMPLES[field.key]}]"
                )
            if field.item_choices and item not in field.item_choices:
                near = did_you_mean(item, field.item_choices)
                raise Misfit(f"contains {shown(item)}{near}; use names out of {', '.join(field.item_choices)}")
        return value
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str) or not isinstance(item, str):
                raise Misfit(
                    f"contains {shown(name)}: {shown(item)}; write names on both sides, in quotes where needed"
                )
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = field.lower, field.upper
        outside = (
            not math.isfinite(value)
            or (low is not None and (value <= low if field.lower_open else value < low))
            or (high is not None and (value >= high if field.upper_open else value > high))
        )
        if outside:
            raise Misfit(f"is {shown(value)}; use {field.range or 'a finite number'}{_example(field)}")
    if value == "" and field.key != "data.system":
        raise Misfit(f"is empty; use {field.kind}{_example(field)}")
    return value


def _advice(field: Field, value: object) -> str:
    if isinstance(value, str) and field.kinds[0] in (int, float, bool) and _as(field.kinds[0], value, True) is not None:
        return "write it without quotes"
    if field.kinds == (str,) and isinstance(value, int | float):
        return f'write it in quotes: "{shown(value)}"'
    return f"use {field.kind}{_example(field)}"


def _example(field: Field) -> str:
    value = EXAMPLES.get(field.key, field.default)
    return (
        ""
        if value is None or value in ([], {})
        else f", for example {value if isinstance(value, str) else shown(value)}"
    )
