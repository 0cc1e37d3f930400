"""Every setting as a flag: `--lora.rank 32`, for commands that take settings.

In: the words of the command line. Out: dotted overrides for `load_settings`, and the words that are left for click.
A flag that is no setting stays an override: `load_settings` then lists it with all other faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fitune.earlier_names import new_name, with_new_names
from fitune.errors import SettingsError

if TYPE_CHECKING:
    from fitune.config.fields import Field

BOOLEANS = ("true", "false", "yes", "no", "on", "off")


class SettingsCommand(click.Command):
    """A command whose unknown `--flags` are settings. They reach it as `ctx.meta["settings"]`, all words as
    `ctx.meta["words"]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        own: dict[str, bool] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                own |= dict.fromkeys([*param.opts, *param.secondary_opts], param.is_flag)
        given, rest = take_settings(args, own)
        try:
            ctx.meta["settings"] = with_new_names(given, "--")
        except SettingsError as error:
            raise click.UsageError(error.faults[0], ctx) from error
        return super().parse_args(ctx, rest)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        write_settings_help(formatter)


def without_option(words: Sequence[str], name: str) -> list[str]:
    """The words without an option that takes a value, and without the value."""
    kept: list[str] = []
    follows = False
    for word in words:
        if not follows and word != name and not word.startswith(f"{name}="):
            kept.append(word)
        follows = word == name
    return kept


def take_settings(args: list[str], own: dict[str, bool]) -> tuple[dict[str, str], list[str]]:
    """(overrides, the other words).

    Args:
        own: the command's own options → whether they take no value.

    Raises:
        click.UsageError: a setting without a value.
    """
    from fitune.config.fields import all_fields

    overrides: dict[str, str] = {}
    rest: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, mark, value = word.partition("=")
        if word == "--":
            return overrides, [*rest, word, *words]
        if not name.startswith("--") or name in own:
            rest.append(word)
            if name.startswith("-") and not mark and own.get(name) is False and words:
                rest.append(words.pop(0))  # its value, whatever that looks like
            continue
        key = name[2:].replace("-", "_")
        if not mark:
            value = _value_after(key, words, all_fields().get(new_name(key)))
        both = key in overrides and key == "data.columns"
        overrides[key] = f"{overrides[key]},{value}" if both else value
    return overrides, rest


def _value_after(key: str, words: list[str], field: Field | None) -> str:
    """Take the flag's value off the words; a switch may stand alone."""
    following = words[0] if words and not words[0].startswith("--") else None
    if field is not None and field.kinds == (bool,):
        return words.pop(0) if following is not None and following.lower() in BOOLEANS else "true"
    if following is None and field is not None:
        raise click.UsageError(f"--{key} needs a value: {field.kind}")
    return words.pop(0) if following is not None else "true"


def write_settings_help(formatter: click.HelpFormatter) -> None:
    """The flags of all settings, by section, with what they mean and their defaults."""
    from fitune.config.fields import FREE, all_fields, sections
    from fitune.config.values import shown

    titles = {"": "Settings", **{name: f"Settings: {name} ({about})" for name, about in sections().items()}}
    for section, title in titles.items():
        rows = [
            (f"--{field.key}", f"{field.doc}  [{field.kind}; default: {shown(field.default)}]")
            for field in all_fields().values()
            if field.section == section
        ]
        if section == FREE:
            rows = [(f"--{FREE}.NAME", "For example --trainer.adam_beta2 0.95")]
        with formatter.section(title):
            formatter.write_dl(rows)
