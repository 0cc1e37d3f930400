"""What a reader of a format gives back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Found:
    """Rows in their order, and where each stands in its file, from 1.

    `encoding` is that of the text; `notes` say what was read otherwise than as it stands, a sentence each.
    """

    rows: list[dict[str, object]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    encoding: str = "utf-8"
    notes: list[str] = field(default_factory=list)

    def add(self, row: dict[str, object], number: int) -> None:
        """One more row."""
        self.rows.append(row)
        self.numbers.append(number)
