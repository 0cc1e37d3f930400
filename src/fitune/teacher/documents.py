"""Documents → passages: text, Markdown, HTML and PDF files of a folder, cut at paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from fitune.console import warn
from fitune.errors import DataError, MissingExtra

TEXT = (".txt", ".md", ".markdown", ".rst")
HTML = (".html", ".htm")
PDF = (".pdf",)
MOST_CHARACTERS = 1500
LEAST_CHARACTERS = 40
SILENT = ("script", "style", "head", "noscript", "template")
BLOCKS = ("p", "div", "li", "h1", "h2", "h3", "h4", "h5", "h6", "tr", "br", "section", "article", "pre", "blockquote")


@dataclass(frozen=True)
class Passage:
    """Text of a document; `place` is its file and the number of the passage in it."""

    text: str
    place: str


def read_passages(path: Path, most_characters: int = MOST_CHARACTERS) -> list[Passage]:
    """Passages of a document, or of all documents below a folder.

    A file that holds no text (a scanned PDF) is warned about and left out.

    Raises:
        DataError: nothing there, no document among the files, or no text in any.
    """
    if not path.exists():
        raise DataError(f"{path} is not there; give a document or a folder of documents")
    known = (*TEXT, *HTML, *PDF)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    documents = [one for one in files if one.suffix.lower() in known]
    if not documents:
        raise DataError(f"{path} holds no document; known are {', '.join(known)}")
    passages: list[Passage] = []
    for document in documents:
        text = _text_of(document)
        if len(text.strip()) < LEAST_CHARACTERS:
            warn(
                f"{document} holds no text that could be asked about{' (scanned?)' if document.suffix == '.pdf' else ''}"
            )
            continue
        name = document.relative_to(path).as_posix() if path.is_dir() else document.name
        pieces = _cut(text, most_characters)
        passages += [Passage(piece, f"{name}, passage {at}") for at, piece in enumerate(pieces, start=1)]
    if not passages:
        raise DataError(f"{path}: no document holds at least {LEAST_CHARACTERS} characters of text")
    return passages


def _text_of(path: Path) -> str:
    if path.suffix.lower() in PDF:
        return _pdf_text(path)
    text = path.read_bytes().decode("utf-8", errors="replace")
    if path.suffix.lower() in HTML:
        reader = _HtmlText()
        reader.feed(text)
        return "".join(reader.pieces)
    return text


def _pdf_text(path: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise MissingExtra(f"{path} is a PDF, which needs pypdf: pip install 'fitune[generate]'") from error
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(path).pages)
    except (PyPdfError, OSError, ValueError) as error:
        warn(f"{path} cannot be read as PDF: {str(error).partition(chr(10))[0]}")
        return ""


def _cut(text: str, most: int) -> Iterator[str]:
    """Paragraphs joined up to a length; a longer one is cut at its sentences, or where it must be."""
    held = ""
    for piece in _pieces(text, most):
        if held and len(held) + 2 + len(piece) > most:
            yield held
            held = piece
        else:
            held = f"{held}\n\n{piece}" if held else piece
    if len(held) >= LEAST_CHARACTERS:
        yield held


def _pieces(text: str, most: int) -> Iterator[str]:
    for paragraph in (part.strip() for part in text.replace("\r\n", "\n").split("\n\n")):
        while len(paragraph) > most:
            at = paragraph.rfind(". ", 0, most) + 1 or paragraph.rfind(" ", 0, most) or most
            at = at if at > 0 else most
            yield paragraph[:at].strip()
            paragraph = paragraph[at:].strip()
        if paragraph:
            yield paragraph


class _HtmlText(HTMLParser):
    """The text of a page, a blank line between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self.silent += 1
        if tag in BLOCKS:
            self.pieces.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self.silent = max(self.silent - 1, 0)
        if tag in BLOCKS:
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.pieces.append(re.sub(r"\s+", " ", data))
