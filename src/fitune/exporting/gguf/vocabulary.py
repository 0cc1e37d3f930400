"""A fast tokenizer as GGUF keeps it: token list, types, merges or scores, the splitter's name, special ids, template.

In: the tokenizer with its chat template, and how many embedding rows the model has. Out: a `Vocabulary`, or `ModelError`
with the reason why llama.cpp would split text otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, Required, TypedDict, cast

import gguf
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fitune.errors import ModelError

# Splitting patterns as their models publish them in tokenizer.json; llama.cpp knows each by a name.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITTERS: dict[tuple[tuple[str, object], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA3), ("ByteLevel", False)): "llama-bpe",
    (("Split", QWEN2), ("ByteLevel", False)): "qwen2",
}
# llama.cpp takes a whole word that is a token before it tries merges, for this splitter alone.
WHOLE_WORDS_FIRST = "llama-bpe"


class Stage(TypedDict, total=False):
    """A normalizer or pre-tokenizer of tokenizer.json; which keys there are its type decides."""

    type: Required[str]
    pretokenizers: list[Stage]
    add_prefix_space: bool
    use_regex: bool
    individual_digits: bool
    behavior: str
    invert: bool
    pattern: dict[str, str]


class BpeModel(TypedDict):
    """The model of tokenizer.json. Merges are pairs, in older files two words in one text."""

    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: NotRequired[bool]
    ignore_merges: NotRequired[bool]


class AddedToken(TypedDict):
    """A token beside the model's own."""

    id: int
    content: str
    special: bool


class TokenizerFile(TypedDict):
    """tokenizer.json, as far as it is read here."""

    model: BpeModel
    added_tokens: list[AddedToken]
    normalizer: NotRequired[Stage | None]
    pre_tokenizer: NotRequired[Stage | None]


@dataclass(frozen=True)
class Vocabulary:
    """What `write` puts into the file. `scores` is empty for byte-level vocabularies, `merges` for the others."""

    model: str
    splitter: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special_ids: dict[str, int]
    add_bos: bool
    add_space_prefix: bool
    template: str | None
    notes: tuple[str, ...] = ()

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Into the file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.splitter)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
        for kind, number in self.special_ids.items():
            getattr(writer, f"add_{kind}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int, end_of_turn: str | None = None) -> Vocabulary:
    """The tokenizer in GGUF's terms.

    Args:
        num_rows: rows of the embedding; those without a token become unused ones.
        end_of_turn: token that ends an answer in the chat template; it becomes the file's end-of-turn id.

    Raises:
        ModelError: more tokens than rows, or a tokenizer that llama.cpp cannot follow.
    """
    inner: TokenizerFile = json.loads(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
    model = inner["model"]
    if model["type"] != "BPE":
        raise ModelError(f"GGUF export takes BPE tokenizers, and this one is a {model['type']}")
    if len(tokenizer) > num_rows:
        raise ModelError(f"the tokenizer has {len(tokenizer):,} tokens and the model {num_rows:,} embedding rows")
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    byte_level = not model.get("byte_fallback")
    splitter = _splitter(inner) if byte_level else "default"
    tokens, types = _tokens(inner, tokenizer, num_rows, byte_level)
    add_bos, notes = adds_bos(tokenizer)
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        splitter=splitter,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(" ".join(pair) for pair in pairs) if byte_level else (),
        scores=() if byte_level else _scores(tokens, types, pairs),
        special_ids=_special_ids(tokenizer, end_of_turn),
        add_bos=add_bos,
        add_space_prefix=not byte_level and _space_prefix(tokenizer),
        template=cast("str | None", tokenizer.chat_template),
        notes=(*_normalizer_note(inner, byte_level), *notes),
    )


def sentencepiece_pieces(
    tokenizer: PreTrainedTokenizerBase, num_rows: int
) -> tuple[list[str], tuple[float, ...], list[int]] | None:
    """Tokens, scores and types by id of a BPE with byte fallback; None for any other tokenizer."""
    inner: TokenizerFile = json.loads(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
    model = inner["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        return None
    tokens, types = _tokens(inner, tokenizer, num_rows, byte_level=False)
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    return tokens, _scores(tokens, types, pairs), types


def _splitter(inner: TokenizerFile) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level vocabulary."""
    whole: Stage = inner.get("pre_tokenizer") or {"type": "none"}
    steps = whole.get("pretokenizers", []) if whole["type"] == "Sequence" else [whole]
    name = SPLITTERS.get(tuple(_step(step) for step in steps))
    if name is None:
        kinds = " + ".join(step["type"] for step in steps)
        raise ModelError(f"llama.cpp has no name that is known here for this tokenizer's splitting of text ({kinds})")
    if bool(inner["model"].get("ignore_merges")) != (name == WHOLE_WORDS_FIRST):
        raise ModelError(
            f"llama.cpp's splitter {name} treats words that are whole tokens otherwise than this tokenizer"
        )
    return name


def _step(step: Stage) -> tuple[str, object]:
    """A pre-tokenizer as the keys of SPLITTERS have it."""
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step.get("individual_digits")
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, step.get("pattern", {}).get("Regex")
    return kind, None


def _tokens(
    inner: TokenizerFile, tokenizer: PreTrainedTokenizerBase, rows: int, byte_level: bool
) -> tuple[list[str], list[int]]:
    """Token texts and types by id; a row that no token has is unused."""
    kind = gguf.TokenType
    texts: dict[int, str] = {number: text for text, number in inner["model"]["vocab"].items()}
    types = dict.fromkeys(texts, kind.NORMAL)
    if not byte_level:
        types |= {at: kind.BYTE for at, text in texts.items() if text.startswith("<0x") and text.endswith(">")}
        if (unknown := cast("int | None", tokenizer.unk_token_id)) is not None:
            types[unknown] = kind.UNKNOWN
    for added in inner["added_tokens"]:
        texts[added["id"]] = added["content"]
        if types.get(added["id"]) != kind.UNKNOWN:
            types[added["id"]] = kind.CONTROL if added["special"] else kind.USER_DEFINED
    numbers = range(rows)
    return [texts.get(at, f"[PAD{at}]") for at in numbers], [int(types.get(at, kind.UNUSED)) for at in numbers]


def _scores(tokens: Sequence[str], types: Sequence[int], pairs: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """SentencePiece's scores: llama.cpp joins the pair whose token has the highest, so the first merge gets the most."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        rank.setdefault("".join(pair), place)
    last = len(pairs)
    return tuple(
        -float(rank.get(text, last)) if kind == gguf.TokenType.NORMAL else 0.0
        for text, kind in zip(tokens, types, strict=True)
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase, end_of_turn: str | None) -> dict[str, int]:
    ids = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad")}
    if end_of_turn is not None:
        ids["eot"] = tokenizer.convert_tokens_to_ids(end_of_turn)
    return {kind: int(number) for kind, number in ids.items() if number is not None}


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, tuple[str, ...]]:
    """Whether llama.cpp should put BOS before a prompt: as the chat template has it, since chat is what was trained.

    llama.cpp has one switch for chat and plain text, and takes the template's own BOS away where it adds one.
    """
    bos = cast("str | None", tokenizer.bos_token)
    plain = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if not tokenizer.chat_template or bos is None:
        return plain, ()
    text = cast(str, tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False))
    chat = text.startswith(bos)
    # A template may open with the BOS token as its own first mark (SmolLM2: <|im_start|>): then nothing is added.
    if plain and not chat:
        return False, ("the chat template writes no BOS token, so the file adds none, to plain text neither",)
    return plain, ()


def _space_prefix(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text gets a blank put before it; llama.cpp does so after each special token too, or nowhere.

    Raises:
        ModelError: at the beginning of a text alone.
    """

    def first(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.convert_ids_to_tokens(ids)[1 if text != "a" else 0]

    mark = tokenizer.eos_token or tokenizer.bos_token
    plain = first("a").startswith("▁")
    after = first(f"{mark}a").startswith("▁") if mark else plain
    if plain != after:
        raise ModelError(
            "it puts a blank before a text and none after a special token, and llama.cpp knows both or none"
        )
    return plain


def _normalizer_note(inner: TokenizerFile, byte_level: bool) -> tuple[str, ...]:
    kind = (inner.get("normalizer") or {}).get("type")
    if byte_level and kind is not None:
        return (f"the tokenizer normalises text first ({kind}), which llama.cpp does not",)
    return ()
