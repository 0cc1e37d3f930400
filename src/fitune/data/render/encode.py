"""Rendered rows → token ids and which of them are trained, many at once, with one tokenizer.

A prompt has the tokens that it has alone. The library cuts a text at added tokens before anything else, so the text between
two of them is encoded alike wherever it stands: a system prompt that all rows share is encoded once, and a prompt is
compared with its row by its last piece. Where there are no such tokens, row and prompt are encoded whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from fitune.data.examples import Rendered
from fitune.data.render.marks import NEVER, TEXT, Marks
from fitune.errors import DataError

# Texts whose encodings, some hundred bytes a token, are in memory at one time.
ROWS_AT_ONCE = 1_000
CHARACTERS_AT_ONCE = 500_000
SHARED = 5_000  # texts whose tokens are remembered


@dataclass(frozen=True)
class EncodedRow:
    """Tokens of a row and which are trained; `source` is the place of the rendered row that it comes from."""

    ids: np.ndarray
    trained: np.ndarray
    source: int


@dataclass(frozen=True)
class Encoder:
    """Text → tokens, with one tokenizer. Texts may have runs that stand for marks as plain text (marks.py)."""

    tokenizer: Any
    marks: Marks
    _ends: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _shared: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.encode([text])[0].ids

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Encodings of the `tokenizers` library, with ids and (by character) offsets."""
        self.tokenizer("", add_special_tokens=False)  # leaves the library's tokenizer without padding and truncation
        backend = self.tokenizer.backend_tokenizer
        quoting = [at for at, text in enumerate(texts) if TEXT in text]
        if not quoting:
            return backend.encode_batch(list(texts), add_special_tokens=False)
        found = backend.encode_batch([self.marks.shown(text) for text in texts], add_special_tokens=False)
        as_text = [self.marks.for_plain(texts[at]) for at in quoting]
        for at, one in zip(quoting, self._plain.encode_batch(as_text, add_special_tokens=False), strict=True):
            found[at] = one
        return found

    @cached_property
    def _plain(self) -> Any:
        return self.marks.plain_tokenizer(self.tokenizer.backend_tokenizer)

    @cached_property
    def _borders(self) -> re.Pattern[str]:
        """Added tokens at which the library cuts a text before it does anything else."""
        added = [
            token for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values() if not token.normalized
        ]
        if any(token.single_word or token.lstrip for token in added):  # what stands before them is not left alone
            return NEVER
        longest_first = sorted(map(str, added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if added else NEVER

    def rows(self, rendered: Sequence[Rendered], faults: list[tuple[int, str]] | None = None) -> Iterator[EncodedRow]:
        """The rows in order.

        Where the text behind a prompt would merge with its end, the answer is tokenized by itself; a row of several answers
        then becomes one row an answer.

        Args:
            faults: takes the places of rows that are left out, and why; None raises instead.

        Raises:
            DataError: the tokenizer writes such an answer differently when it stands alone.
        """
        for begin, end in _batches(rendered):
            yield from self._rows(rendered[begin:end], begin, faults)

    def _rows(
        self, rendered: Sequence[Rendered], first: int, faults: list[tuple[int, str]] | None
    ) -> Iterator[EncodedRow]:
        cut = [self._cut(row) for row in rendered]
        known = self._of_segments([segment for segments in cut for segment in segments])
        whole = [at for at, segments in enumerate(cut) if not segments]
        encodings = dict(zip(whole, self.encode([rendered[at].text for at in whole]), strict=True))
        for at, (row, segments) in enumerate(zip(rendered, cut, strict=True)):
            if segments and (found := self._joined(row, segments, known, first + at)):
                yield found
                continue
            encoding = encodings.get(at) or self.encode([row.text])[0]
            prompts = [one.ids for one in self.encode([row.text[:border] for border in row.prompts])]
            if all(encoding.ids[: len(prompt)] == prompt for prompt in prompts):
                begins = {border: len(prompt) for border, prompt in zip(row.prompts, prompts, strict=True)}
                ids = np.asarray(encoding.ids, dtype=np.int32)
                yield EncodedRow(ids, trained_tokens(self._offsets(encoding), row.spans, begins), first + at)
                continue
            try:
                parts = zip(prompts, row.prompts, row.spans, strict=True)
                yield from [self._spliced(row, prompt, border, span, first + at) for prompt, border, span in parts]
            except DataError as error:
                if faults is None:
                    raise
                faults.append((first + at, str(error)))

    def _cut(self, row: Rendered) -> list[str]:
        """The text cut before each added token, where every prompt ends and every span begins behind one; else nothing."""
        if not row.prompts or TEXT in row.text or any(start not in row.prompts for start, _ in row.spans):
            return []
        cuts = [found.start() for found in self._borders.finditer(row.text)]
        if not cuts or cuts[0] >= row.prompts[0]:
            return []
        cuts = cuts if cuts[0] == 0 else [0, *cuts]
        return [row.text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(row.text)], strict=True)]

    @cached_property
    def _taking_blanks(self) -> dict[int, int]:
        """Added tokens that take the blanks behind them along → the length of their own text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        return {number: len(str(token)) for number, token in added if token.rstrip and not token.lstrip}

    def _offsets(self, encoding: Any) -> list[tuple[int, int]]:
        """Begin and end of each token by character, without the blanks that an added token takes along."""
        if not self._taking_blanks:
            return encoding.offsets
        own = self._taking_blanks
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [(begin, begin + own[token] if token in own else stop) for token, (begin, stop) in pairs]

    def _of_segments(self, segments: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokens of each text. What stands in several rows is encoded once, here and in later batches."""
        counts = Counter(segments)
        fresh = [text for text in counts if text not in self._shared]
        encoded = self.encode(fresh) if fresh else []
        known = {text: np.asarray(one.ids, dtype=np.int32) for text, one in zip(fresh, encoded, strict=True)}
        found = {text: self._shared.get(text) for text in counts}
        if len(self._shared) >= SHARED:
            self._shared.clear()
        self._shared.update({text: ids for text, ids in known.items() if counts[text] > 1})
        return {text: known[text] if ids is None else ids for text, ids in found.items()}

    def _joined(
        self, row: Rendered, segments: Sequence[str], known: dict[str, np.ndarray], source: int
    ) -> EncodedRow | None:
        """The row of its segments; None where a prompt's last tokens are others than those that it has alone."""
        arrays = [known[segment] for segment in segments]
        characters = [0, *accumulate(map(len, segments))]
        tokens = [0, *accumulate(map(len, arrays))]
        trained = np.zeros(tokens[-1], dtype=bool)
        for prompt, (_, end) in zip(row.prompts, row.spans, strict=True):
            at = bisect_left(characters, prompt) - 1
            last = self._end_of(segments[at][: prompt - characters[at]])
            if arrays[at][: len(last)].tobytes() != last.tobytes():
                return None
            stop = tokens[-1]
            if end < len(row.text):
                behind = bisect_left(characters, end) - 1
                mark = self._borders.match(segments[behind])
                if mark is None or characters[behind] + mark.end() != end:
                    return None
                stop = tokens[behind] + 1
            trained[tokens[at] + len(last) : stop] = True
        return EncodedRow(np.concatenate(arrays), trained, source)

    def _end_of(self, text: str) -> np.ndarray:
        """Tokens of the end of a prompt, from an added token on."""
        if text not in self._ends:
            if len(self._ends) >= SHARED:
                self._ends.clear()
            self._ends[text] = np.asarray(self.ids(text), dtype=np.int32)
        return self._ends[text]

    def _spliced(self, row: Rendered, prompt: list[int], border: int, span: tuple[int, int], source: int) -> EncodedRow:
        """A row of one answer: the prompt's own tokens, then the answer's."""
        start, end = span
        (encoded,) = self.encode([row.text[border:end]])
        ids = [*prompt, *encoded.ids]
        if self.tokenizer.decode(ids) != self.tokenizer.decode(self.ids(row.text[:end])):
            raise DataError(
                f"row {row.row_number}: the end of the prompt and the beginning of the answer become one token: "
                f"{row.text[max(border - 20, 0) : border]!r} and {row.text[border : border + 20]!r}; take the blanks off "
                "the answer's beginning"
            )
        offsets = [(begin + border, stop + border) for begin, stop in self._offsets(encoded)]
        trained = trained_tokens(offsets, ((start, end),), {border: 0})
        whole = np.concatenate([np.zeros(len(prompt), dtype=bool), trained])
        return EncodedRow(np.asarray(ids, dtype=np.int32), whole, source)


def _batches(rendered: Sequence[Rendered]) -> Iterator[tuple[int, int]]:
    """Half-open spans of rows that are encoded together."""
    begin = characters = 0
    for at, row in enumerate(rendered):
        if at - begin == ROWS_AT_ONCE or (at > begin and characters + len(row.text) > CHARACTERS_AT_ONCE):
            yield begin, at
            begin, characters = at, 0
        characters += len(row.text)
    if begin < len(rendered):
        yield begin, len(rendered)


def trained_tokens(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], begins: dict[int, int]
) -> np.ndarray:
    """For each token's (start, end) whether it is trained.

    Args:
        begins: character at which an answer begins → its first token. Any other span begins with the token whose last
            character is the first one in it.
    """
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    stops = places[:, 1]
    trained = np.zeros(len(places), dtype=bool)
    for start, end in spans:
        last = np.searchsorted(stops, end, side="right")
        if start in begins:
            trained[begins[start] : last] = True
        else:
            first = np.searchsorted(stops, start + 1)
            trained[first:last] = stops[first:last] > places[first:last, 0]
    return trained
