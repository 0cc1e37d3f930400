"""A tokenizer made safe: what pads, what ends, what begins.

Padding is never told apart by id (masks are by position), so a pad token equal to the end token cannot unteach
stopping; the pad id set here only fills the rectangle.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from fitune.console import log
from fitune.errors import ModelError, did_you_mean
from fitune.models.builtin import BUILTIN
from fitune.models.source import ModelSource
from fitune.models.template import Template

if TYPE_CHECKING:
    from transformers import GenerationConfig

REPETITIONS = ("a" * 40 + "!", " " * 40 + "x", "1" * 40 + "a")
LONGEST_WORDS = 400  # characters of a library's error


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False, pads: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with some pad token if ``pads``.

    Raises:
        ModelError: no tokenizer, an unreachable hub, or a slow tokenizer that cannot tell character positions.
    """
    options = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source.path, **options))
    except Exception as error:  # transformers raises many kinds here; each means the same to the user
        raise ModelError(unreachable(source, "tokenizer", error)) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {source.name} is a slow tokenizer, which cannot map tokens to characters; "
            "fitune needs a fast tokenizer (tokenizer.json) to place the loss mask"
        )
    _try_repetitions(tokenizer, source.name)
    if pads and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _try_repetitions(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ModelError when the tokenizer gives up on a repeated character, where a bad expression takes for ever."""
    try:
        for text in REPETITIONS:
            tokenizer(text, add_special_tokens=False)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer in {name} cannot split repeated characters: {library_words(error)}; an expression of its "
            "pre-tokenizer or normalizer (tokenizer.json) tries too many ways"
        ) from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, template: Template) -> None:
    """Compare the tokenizer with the rows of the model's embedding; a pad token without a row gives way to another.

    Tokens that are added later with the template get rows of their own, and an added token that neither the template
    nor the tokenizer's own marks use is never met (Gemma 3 has one such in its text models).

    Raises:
        ModelError: a token that text, the template or the tokenizer's marks may give has no row.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond and tokenizer.pad_token in beyond:
        _pad_with_another(tokenizer, rows)
    marks = {str(one) for one in (*_marks(tokenizer), template.end_of_turn) if one is not None}
    added = cast("Tokens", tokenizer).get_added_vocab()
    met = {
        token: number
        for token, number in beyond.items()
        if token not in template.added_tokens and (token not in added or token in marks or token in template.text)
    }
    if met:
        shown = ", ".join(f"{token} ({number})" for token, number in sorted(met.items(), key=lambda one: one[1])[:5])
        raise ModelError(
            f"the tokenizer of {config.name_or_path or 'the model'} has tokens up to id {max(met.values()):,} and the model "
            f"{rows:,} embedding rows: there is no row for {shown}; take the tokenizer that belongs to the model, or "
            f"grow the model with resize_token_embeddings({max(beyond.values()) + 1}) and save it"
        )


def _pad_with_another(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Pad with the end token: padding is masked by position, so any token with a row will do."""
    for token in filter(None, _marks(tokenizer)):
        if cast(int, tokenizer.convert_tokens_to_ids(token)) < rows:
            log(f"pad token {tokenizer.pad_token} has no embedding row; {token} pads instead")
            tokenizer.pad_token = token
            return


class Tokens(Protocol):
    """What the base class of tokenizers does not declare and every fast one has."""

    def get_added_vocab(self) -> dict[str, int]: ...


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, ...]:
    """End, unknown and begin token."""
    return cast("tuple[str | None, ...]", (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token))


def stop_ids(
    tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | PretrainedConfig | None, template: Template | None
) -> tuple[int, ...]:
    """Ids that end an answer: the end token, those of the model's (generation) config, the template's end of turn."""
    ids: list[int | None] = []
    own = getattr(config, "eos_token_id", None)
    ids += own if isinstance(own, list | tuple) else [own] if own is not None else []
    ids.append(cast("int | None", tokenizer.eos_token_id))
    if template and template.end_of_turn:
        ids.append(cast("int | None", tokenizer.convert_tokens_to_ids(template.end_of_turn)))
    return tuple(sorted({int(token) for token in ids if token is not None}))


def unreachable(source: ModelSource, what: str, error: Exception) -> str:
    """The message for a model or tokenizer that transformers could not load."""
    first = library_words(error)
    if source.kind != "hub":
        return f"the {what} in {source.name} cannot be loaded: {first}"
    folders = [entry.name for entry in Path.cwd().iterdir() if (entry / "config.json").exists()]
    hint = did_you_mean(source.name, [*BUILTIN, *folders])
    at = f" at revision {source.revision}" if source.revision else ""
    return (
        f'the {what} of hub model "{source.name}"{at} cannot be loaded{hint}: {first}. '
        "Check the name and the network (a gated model needs `hf auth login`), or download it "
        "elsewhere and name the folder in model.name"
    )


def library_words(error: BaseException) -> str:
    """A library's error in one line of bounded length, without its advice to read pickles unsafely or run code at once."""
    words = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in words:
        return (
            "it comes with Python code of its own, which is not run; for authors you trust, set model.trust_remote_code"
        )
    sentences = [one for one in re.split(r"(?<=[.!?])\s", words) if "weights_only" not in one]
    words = " ".join(sentences) or type(error).__name__
    return words if len(words) <= LONGEST_WORDS else f"{words[:LONGEST_WORDS]} …"
