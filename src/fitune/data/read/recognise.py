"""Which form a data set has: recognised from its columns, or named in the settings.

In: column names, `data.form`, `data.columns` (the form's column → the file's) and the kind that the method reads.
Out: a `RecognisedForm`, which reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher

from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.recognised_form import RecognisedForm
from fitune.errors import DataError, did_you_mean

# Kind → what a method that reads it needs, for the messages.
NEEDS = {
    "rows": "rows with answers",
    "text": "plain text",
    "pairs": "pairs of a chosen and a rejected answer",
    "judged": "single answers with a judgement",
    "prompts": "prompts",
}
# Columns of preference data → those that tell, and what to do with such data instead.
PREFERENCE = {
    "prompt, chosen, rejected": (
        {"chosen", "rejected"},
        "use a method that reads pairs, such as dpo or orpo, or for plain fine-tuning map the chosen answer: "
        "--data.columns completion=chosen",
    ),
    "prompt, completion, label": (
        {"completion", "label"},
        "use method kto, or drop the label column to train on every completion",
    ),
}
MISSPELT = 0.85  # likeness from which a column is taken for a misspelt one of the form


def forms_of(kind: str) -> list[DataForm]:
    """The forms that hold what a method reads (a kind of `DataForm`), in the order in which they are tried."""
    found = [form for form in DATA_FORMS.values() if kind in form.kinds]
    return sorted(found, key=lambda form: kind not in form.first_for)


def holds(kind: str, columns: Iterable[str], sample: Mapping[str, object] | None = None) -> bool:
    """Whether the columns, and a row where it takes one to tell, are those of some form of this kind."""
    present = set(columns)
    return any(set(form.needs) <= present and _fits(form, sample, {}) for form in forms_of(kind))


def recognise(
    columns: Sequence[str],
    form: str = "auto",
    mapping: Mapping[str, str] | None = None,
    kind: str = "rows",
    sample: Mapping[str, object] | None = None,
) -> RecognisedForm:
    """The form that fits the columns.

    Args:
        form: a key of DATA_FORMS, or auto.
        mapping: the form's column → the file's.
        kind: what the method reads, a kind of `DataForm`.
        sample: a row, for forms that columns alone do not tell.

    Raises:
        DataError: none fits, or a preference form, a mapping to columns that are not there, or a column whose name is
            nearly one that the form reads.
    """
    mapping = dict(mapping or {})
    _refuse_mapping(mapping, columns)
    present = (set(columns) - set(mapping.values())) | set(mapping)
    if kind == "rows" and form == "auto":
        _refuse_preferences(present, sample)
    readable = {one.name: one for one in forms_of(kind)}
    if form == "auto":
        fitting = (one for one in readable.values() if set(one.needs) <= present and _fits(one, sample, mapping))
        chosen = next(fitting, None)
    elif form in readable:
        chosen = readable[form] if set(readable[form].needs) <= present else None
    else:
        raise DataError(f"data.form is {form}, and the method needs {NEEDS[kind]}: use {', '.join(readable)}, or auto")
    if chosen is None and form in ("auto", *readable) and not mapping:
        chosen, mapping = _but_for_case(columns, [readable[form]] if form in readable else list(readable.values()))
        present = (set(columns) - set(mapping.values())) | set(mapping)
    if chosen is None:
        raise DataError(_not_recognised(columns, form, kind, readable))
    _refuse_misspelt(chosen, present)
    return RecognisedForm(chosen, mapping)


def _fits(form: DataForm, sample: Mapping[str, object] | None, mapping: Mapping[str, str]) -> bool:
    if form.fits is None:
        return True
    if sample is None:
        return False
    return form.fits({**sample, **{own: sample.get(theirs) for own, theirs in mapping.items()}})


def _not_recognised(columns: Sequence[str], form: str, kind: str, readable: Mapping[str, DataForm]) -> str:
    """What was found, what exists, and what may be wrong."""
    wanted = "; ".join(f"{one.name}: {', '.join(one.needs)}" for one in readable.values())
    asked = f"data.form is {form}, and" if form != "auto" else "no form is recognised:"
    if kind != "rows":
        asked = f"the method needs {NEEDS[kind]}; {asked}"
    if {"custom_id", "response"} <= set(columns):
        hint = "These are the answers of an OpenAI batch, without what was asked; join them with their requests."
    elif any(name.strip().endswith((".", "?", "!")) or name.count(" ") > 2 for name in columns):
        hint = (
            "The first line looks like a row; if the file has no line of column names, write one at its head, for "
            "example with: sed -i '1i prompt,completion' FILE."
        )
    else:
        hint = f"Map other names, for example: {_flag(columns)}"
    return f"{asked} the data has the columns {', '.join(columns) or '(none)'}. Forms and their columns are {wanted}. {hint}"


def _flag(columns: Sequence[str]) -> str:
    """The flag that maps a prompt and a completion, filled in with the data's own columns."""
    first, second = (*columns, "QUESTION", "ANSWER")[:2] if len(columns) > 1 else ("QUESTION", "ANSWER")
    return f'--data.columns "prompt={first},completion={second}"'


def _but_for_case(columns: Sequence[str], forms: Sequence[DataForm]) -> tuple[DataForm | None, dict[str, str]]:
    """The form whose columns are there but for case and blanks around them, and its mapping; (None, {}) without one."""
    folded = {column.strip().casefold(): column for column in columns}
    fitting = next((one for one in forms if one.fits is None and set(one.needs) <= folded.keys()), None)
    if fitting is None or len(folded) < len(columns):
        return None, {}
    return fitting, {name: folded[name] for name in (*fitting.needs, *fitting.may_have) if name in folded}


def _refuse_misspelt(form: DataForm, present: set[str]) -> None:
    """Raises DataError for a column that the form does not read, and that is nearly one that it would read."""
    absent = [name for name in form.may_have if name not in present]
    for column in sorted(present - {*form.needs, *form.may_have}):
        folded = column.strip().casefold()
        for name in absent:
            if folded == name or SequenceMatcher(None, folded, name).ratio() >= MISSPELT:
                raise DataError(
                    f'the column "{column}" is not read (did you mean "{name}"?); map it with '
                    f'--data.columns "{name}={column}", or rename it if it is something else'
                )


def _refuse_mapping(mapping: Mapping[str, str], columns: Sequence[str]) -> None:
    """Raises DataError for a mapping to a column that is not there, or of one that no form knows."""
    known = {name for form in DATA_FORMS.values() for name in (*form.needs, *form.may_have)}
    for own, theirs in mapping.items():
        if theirs not in columns:
            raise DataError(
                f'data.columns maps {own} to "{theirs}", which the data does not have{did_you_mean(theirs, columns)}; '
                f"its columns are: {', '.join(columns)}"
            )
        if own not in known:
            raise DataError(f'data.columns has "{own}", which no form uses{did_you_mean(own, known)}')


def _refuse_preferences(present: set[str], sample: Mapping[str, object] | None) -> None:
    """Raises DataError for the columns of preference data, which are not what rows are."""
    found = [one for one in PREFERENCE.items() if one[1][0] <= present]
    if "messages" in present and isinstance((sample or {}).get("label"), bool):
        found.append(("messages, label", PREFERENCE["prompt, completion, label"]))
    for layout, (_, instead) in found:
        raise DataError(
            f"the columns are those of preference data ({layout}), which sft and lm do not train on; {instead}"
        )
