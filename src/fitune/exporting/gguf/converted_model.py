"""A model as a GGUF file by llama.cpp's own converter, through a temporary folder of transformers' files."""

from __future__ import annotations

import tempfile
from copy import copy
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target
from fitune.exporting.gguf.converter import convert
from fitune.exporting.gguf.sentencepiece_file import write_sentencepiece
from fitune.exporting.gguf.vocabulary import sentencepiece_pieces
from fitune.exporting.new_folder import require_space
from fitune.exporting.whole_model import save_whole
from fitune.models.load_base import input_weight
from fitune.models.towers import auto_class


def refuse_unconverted(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError when the converter knows not the family or not the tokenizer: it is asked for the vocabulary."""
    with tempfile.TemporaryDirectory(prefix="fitune-gguf-") as scratch:
        folder = Path(scratch)
        whole = copy(config)
        whole.architectures = config.architectures or [auto_class(config)._model_mapping[type(config)].__name__]
        whole.save_pretrained(folder)
        _write_tokenizer(tokenizer, folder, max(config.get_text_config().vocab_size, len(tokenizer)))
        convert(folder, folder / "vocabulary.gguf", "f16", vocabulary_only=True)


def convert_model(target: Target, out: Path, kind: str) -> None:
    """Write `out` in one of the types that the converter writes.

    Raises:
        RunError: no room for the temporary copy. ModelError: the converter refuses the model.
    """
    model = target.plain_model
    require_space(out.parent, model.num_parameters() * (next(model.parameters()).element_size() + 2))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".whole-") as scratch:
        folder = Path(scratch) / out.stem  # the converter names the model after it
        save_whole(target, folder)
        _write_tokenizer(target.renderer.tokenizer, folder, input_weight(model).shape[0])
        convert(folder, out, kind)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, rows: int) -> None:
    """tokenizer.json and its settings, and SentencePiece's file where llama.cpp reads no other."""
    tokenizer.save_pretrained(folder)
    if len(tokenizer) > rows:
        raise ModelError(f"the tokenizer has {len(tokenizer):,} tokens and the model {rows:,} embedding rows")
    pieces = sentencepiece_pieces(tokenizer, rows)
    if pieces is not None:
        tokens, scores, types = pieces
        write_sentencepiece(folder / "tokenizer.model", tokens, scores, types)
