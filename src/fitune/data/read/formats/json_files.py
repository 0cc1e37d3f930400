""".jsonl and .json: an object a line, a list of objects, objects that follow each other, or columns as pandas writes them."""

from __future__ import annotations

import codecs
import io

from fitune.data.read.formats.encoding import decode, refuse_encoding, to_utf8
from fitune.data.read.formats.found import Found
from fitune.data.read.json_text import BadJson, loads, place, values
from fitune.data.read.messages.message import looks_like_message
from fitune.errors import DataError

APART = "the file is no list and not an object a line throughout; its objects are read as they follow each other"


def read_json_lines(name: str, content: bytes) -> Found:
    """An object a line; objects over several lines or side by side are read too, and a single list of objects.

    Raises:
        DataError: with the line and what is wrong in it.
    """
    content, encoding = to_utf8(name, content)
    found, at = Found(encoding=encoding), 0
    for number, line in enumerate(io.BytesIO(content), start=1):
        begin, at = at, at + len(line)
        if line.startswith(codecs.BOM_UTF8):
            line = line[len(codecs.BOM_UTF8) :]
            found.notes.append(f"line {number} begins with a byte order mark, as joined files have; it is left out")
        if line.isspace():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            refuse_encoding(name, content, begin + error.start)
        if not found.rows and text.lstrip().startswith("[") and (rows := _list_of_objects(content[begin:])):
            return _numbered(rows, Found(encoding=encoding, notes=["the file is one list of objects"]))
        try:
            row = loads(text.rstrip("\r\n"))
        except BadJson as error:
            _read_apart(name, content[begin:], number, found, error)
            return found
        found.add(_object(name, f"line {number}", row), number)
    return found


def read_json(name: str, content: bytes) -> Found:
    """A list of objects, alone or in an object; columns; or objects that follow each other.

    Raises:
        DataError: with the place and what is wrong there.
    """
    text, encoding = decode(name, content)
    found = Found(encoding=encoding)
    try:
        data = loads(text)
    except BadJson as error:
        if not error.more:
            raise _fault(name, text, error) from error
        _read_apart(name, text.encode(), 1, found, error)
        return found
    return _numbered(_rows_of(name, data, found), found, name)


def _read_apart(name: str, content: bytes, first_line: int, found: Found, fault: BadJson) -> None:
    """Add objects that follow each other; where the first is none, `fault` is what is wrong."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        refuse_encoding(name, content, error.start)
    behind, line, before = 0, first_line, len(found.rows)
    try:
        for begin, row in values(text):
            line += text.count("\n", behind, begin)
            behind = begin
            found.add(_object(name, f"line {line}", row), line)
    except BadJson as error:
        raise _fault(name, text, fault if len(found.rows) == before else error, first_line) from error
    found.notes.append(APART)


def _fault(name: str, text: str, error: BadJson, first_line: int = 1) -> DataError:
    """The error with the place in the file."""
    if error.at is None:
        return DataError(f"{name}, from line {first_line}: bad JSON ({error.reason})")
    line, column = place(text, error.at)
    begin = error.at - column + 1
    shown = text[begin : begin + 400].split("\n")[0].strip()[:80]
    return DataError(f"{name}, line {first_line + line - 1}, column {column}: bad JSON ({error.reason}): {shown}")


def _list_of_objects(content: bytes) -> list[object]:
    """The list that the whole content is, if it is one of objects."""
    try:
        data = loads(content.decode())
    except ValueError:
        return []
    return data if isinstance(data, list) and all(isinstance(row, dict) for row in data) else []


def _rows_of(name: str, data: object, found: Found) -> list[object]:
    """The rows of a whole document.

    Raises:
        DataError: it is no list, and no object that holds one.
    """
    if isinstance(data, list):
        return data
    if not isinstance(data, dict) or not data:
        raise DataError(f"{name} contains a JSON {type(data).__name__}; expected a list of objects")
    lists = {key: value for key, value in data.items() if isinstance(value, list)}
    objects = {key: value for key, value in lists.items() if value and all(isinstance(item, dict) for item in value)}
    rows = {key: value for key, value in objects.items() if not all(map(looks_like_message, value))}
    if len(rows) > 1:
        raise DataError(
            f"{name} holds several lists of objects ({', '.join(rows)}); keep one a file, and name the file"
        )
    if len(rows) == 1 and len(lists) == 1:
        found.notes.append(f'the rows are those of "{next(iter(rows))}"')
        return next(iter(rows.values()))
    if set(data) >= {"columns", "data"} and all(isinstance(row, list) for row in data["data"]):
        found.notes.append("the rows are a table split into columns and data, as pandas writes it")
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]
    if columns := _columns(name, data):
        found.notes.append("the file holds columns, not rows, as pandas writes them; they are read row by row")
        return columns
    return [data]


def _columns(name: str, data: dict[str, object]) -> list[object]:
    """The rows of an object of columns: lists of one length, or objects with the same keys; none where it is no such.

    Raises:
        DataError: objects in objects of which it is not sure what are rows and what columns.
    """
    held = list(data.values())
    lists = [column for column in held if isinstance(column, list)]
    if len(lists) == len(held):
        lengths = {len(column) for column in lists}
        if len(lengths) > 1 or any(column and all(map(looks_like_message, column)) for column in lists):
            return []
        return [dict(zip(data, row, strict=True)) for row in zip(*lists, strict=True)]
    objects = [column for column in held if isinstance(column, dict) and column]
    if len(objects) < len(held):
        return []
    inner = list(objects[0])
    if all(key.isdigit() for key in inner) and all(list(column) == inner for column in objects):
        return [{key: column[place] for key, column in zip(data, objects, strict=True)} for place in inner]
    if all(key.isdigit() for key in data):
        return held
    if len(held) > 1 and all(list(column) == inner for column in objects):
        raise DataError(f"{name} holds objects in objects, and rows are not told from columns; write a list of objects")
    return []


def _numbered(rows: list[object], found: Found, name: str = "") -> Found:
    for number, row in enumerate(rows, start=1):
        found.add(_object(name, f"item {number}", row), number)
    return found


def _object(name: str, where: str, row: object) -> dict[str, object]:
    """A row must be an object with columns."""
    if not isinstance(row, dict):
        raise DataError(f'{name}, {where}: a {type(row).__name__}; a row is an object such as {{"prompt": …}}')
    return row
