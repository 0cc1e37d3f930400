"""Values with their places: where each key of a YAML file stands, and what was written for it.

In: the path of a YAML file. Out: `Sheet`: dotted key → `Given`, and the faults of the file itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fitune.config.fields import all_fields, sections
from fitune.earlier_names import both_names, new_name, tell

MOST_NODES = 10_000


@dataclass(frozen=True)
class Given:
    """One value that the user wrote. ``place`` names it in a fault: ``run.yaml:3: lora.rank`` or ``--lora.rank``."""

    key: str
    value: object
    place: str
    is_text: bool = False  # from the command line: still to be read as a number, a list, ...


@dataclass
class Sheet:
    """What a file holds."""

    given: dict[str, Given] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_sheet(path: Path) -> Sheet:
    """Read a YAML file of settings; every fault of the file itself is in the result."""
    sheet = Sheet()
    root = read_root(path, sheet)
    if isinstance(root, yaml.MappingNode) and not sheet.faults:
        read_mapping(sheet, path, root, "")
    return sheet


def read_root(path: Path, sheet: Sheet, stages: bool = False) -> yaml.Node | None:
    """The file's top node, or None with the fault in ``sheet``."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        sheet.faults.append(f"{path} does not exist{_neighbours(path)}")
        return None
    except UnicodeDecodeError as error:
        sheet.faults.append(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8")
        return None
    except OSError as error:
        sheet.faults.append(f"{path} cannot be read: {error.strerror}")
        return None
    except yaml.YAMLError as error:
        sheet.faults.append(_syntax(path, error))
        return None
    except RecursionError:
        sheet.faults.append(f"{path} is nested too deeply; settings are sections with values, two levels")
        return None
    if root is None:
        sheet.faults.append(f"{path} is empty; write the settings that differ, for example `data: {{train: my.jsonl}}`")
    elif not isinstance(root, yaml.MappingNode):
        sheet.faults.append(f"{path}:1: the file is not a mapping; write `section:` and below it `  setting: value`")
    elif any(key.value == "stages" for key, _ in root.value) and not stages:
        sheet.faults.append(f"{path} is a chain of runs (stages:), which `fitune train` takes; here one run is needed")
    return root


def read_mapping(sheet: Sheet, path: Path, node: yaml.MappingNode, prefix: str) -> None:
    """Put the keys of a mapping into the sheet; sections are entered, a setting's own mapping is its value."""
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        key, place = f"{prefix}{name}", f"{path}:{line}: {prefix}{name}"
        if name in lines:
            sheet.faults.append(f"{place} is written twice (first in line {lines[name]}); keep one")
            continue
        lines[name] = line
        if not prefix and "." in name and new_name(key) in all_fields():
            section, _, rest = name.partition(".")
            sheet.faults.append(f"{place} has a dot; in YAML write `{section}:` and below it `  {rest}: ...`")
        elif not prefix and name in sections():
            if isinstance(value_node, yaml.MappingNode):
                read_mapping(sheet, path, value_node, f"{name}.")
            elif value_node.tag != "tag:yaml.org,2002:null":  # a section whose lines are all comments is fine
                sheet.faults.append(
                    f"{place} is {_shown(value_node)}; it is a section: write its settings below it, indented"
                )
        else:
            _read_value(sheet, key, place, value_node)


def _read_value(sheet: Sheet, key: str, place: str, node: yaml.Node) -> None:
    """Put one value into the sheet, under today's name of its setting."""
    if (name := new_name(key)) != key:
        tell(place, key)
    if name in sheet.given:
        sheet.faults.append(both_names(sheet.given[name].place, place, name))
        return
    try:
        size = _size(node, MOST_NODES)
    except RecursionError:  # an alias of what it stands in
        size = MOST_NODES + 1
    if size > MOST_NODES:
        sheet.faults.append(
            f"{place} has more than {MOST_NODES:,} values, its aliases (*) written out; write it shorter"
        )
        return
    try:
        value = _Values("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        why = getattr(error, "problem", None) or str(error)
        sheet.faults.append(f"{place} cannot be read: {why}")
        return
    sheet.given[name] = Given(name, value, place)


def _size(node: yaml.Node, most: int) -> int:
    """Nodes of a value with its aliases written out, counted up to ``most`` and one more."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    count = 1
    for part in parts:
        count += _size(part, most - count)
        if count > most:
            break
    return count


class _Values(yaml.SafeLoader):
    """Values of single nodes; a date stays the text that was written."""


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    return loader.construct_scalar(node)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
    found: dict[object, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice (line {line}); keep one")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Values.add_constructor("tag:yaml.org,2002:timestamp", _text)
_Values.add_constructor("tag:yaml.org,2002:map", _mapping)


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    why = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = f":{mark.line + 1}" if mark else ""
    return f"{path}{line}: not valid YAML: {why}; check indentation, colons and quotes near this line"


def _shown(node: yaml.Node) -> str:
    return f'"{node.value}"' if isinstance(node, yaml.ScalarNode) else "a list"


def _neighbours(path: Path) -> str:
    near = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return f"; YAML files in {path.parent}: {', '.join(near[:8])}" if near else "; check the path"
