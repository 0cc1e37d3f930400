"""What the cases read, made on the spot: two tiny models, data files, shallow configs. Nothing is downloaded."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CONFIGS = Path(__file__).resolve().parents[1] / "memory" / "configs"
WORDS = (
    "the a an in of to and is was on at by with not but from this that these old new big small blue green cold warm "
    "dog cat pig hen cow ant bee fox barn well road string sheet plank canoe banana apple orange water stone letter "
    "eats sees takes gives holds makes finds turns pulls sends glue slid smooth dark easy tell depth translate answer"
).split()
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
PLAIN_TOKENS = {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk")}
PRETRAINING_STEPS = 400


def make_inputs(folder: Path) -> None:
    """Write llama/ (ChatML), neox/ (no template), yoda.jsonl, chat.jsonl, texts.txt and configs/ into a new folder."""
    generator = random.Random(1)
    asked = [" ".join(generator.choices(WORDS, k=generator.randint(4, 9))) for _ in range(300)]
    answers = [" ".join(map(_pig_latin, sentence.split())) for sentence in asked]
    corpus = [*asked, *answers, "system user assistant Translate to Pig Latin."]
    pairs = list(zip(asked, answers, strict=True))

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    chatml = _tokenizer(corpus, CHATML_TOKENS, CHATML)
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 512}
    llama = _model("llama", chatml, tie_word_embeddings=True, **wide, **sizes)
    _pretrain(llama, chatml, [chatml.apply_chat_template(_turns(*pair), tokenize=False) for pair in pairs])
    plain = _tokenizer(corpus, PLAIN_TOKENS, None)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "rotary_pct": 0.25, "max_position_embeddings": 1024}
    neox = _model("gpt_neox", plain, tie_word_embeddings=False, **narrow, **sizes)
    for part in (llama, chatml):
        part.save_pretrained(folder / "llama")
    for part in (neox, plain):
        part.save_pretrained(folder / "neox")

    (folder / "texts.txt").write_text("\n".join(asked[:120]) + "\n", encoding="utf-8")
    yoda = [{"sentence": sentence, "translation": answer} for sentence, answer in pairs[:120]]
    chats = [{"messages": _turns(*pair) + _turns(*pair[::-1])[1:]} for pair in pairs[:120]]
    for name, rows in (("yoda", yoda), ("chat", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "configs").mkdir()
    for path in CONFIGS.glob("*.json"):  # a search traces many plans: two layers keep it short
        shallow = {**json.loads(path.read_text(encoding="utf-8")), "num_hidden_layers": 2}
        shallow.pop("layer_types", None)
        (folder / "configs" / path.name).write_text(json.dumps(shallow), encoding="utf-8")


def _pig_latin(word: str) -> str:
    start = re.match("[^aeiou]*", word)[0]  # type: ignore[index]  # matches the empty text too
    return f"{word[len(start) :]}{start}ay" if start else f"{word}way"


def _turns(asked: str, answer: str) -> list[dict[str, str]]:
    texts = {"system": "Translate to Pig Latin.", "user": asked, "assistant": answer}
    return [{"role": role, "content": text} for role, text in texts.items()]


def _tokenizer(corpus: list[str], specials: dict[str, str], template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges enough for whole words, of which the demo task makes its sentences."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special_tokens, alphabet = sorted({*specials.values()}), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, model_max_length=512, **specials)


def _model(model_type: str, tokenizer: PreTrainedTokenizerFast, **values: Any) -> Any:
    """Random fp32 weights."""
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ids, **values)
    ).float()


def _pretrain(model: Any, tokenizer: PreTrainedTokenizerFast, texts: list[Any]) -> None:
    """Until answers end by themselves and some of their words are right: else metrics and rewards are all 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(PRETRAINING_STEPS):
        some = [texts[(step * 16 + row) % len(texts)] for row in range(16)]
        batch = tokenizer(some, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
        labels_BT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
