"""Answers: many at once for evaluation, piece by piece for chat. B rows, S tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from fitune.console import follow
from fitune.data.examples import Message
from fitune.data.render.answer import split_answer
from fitune.data.render.chat_format import THINK_OPEN
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.models.base_model import base_model_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

LanguageModel: TypeAlias = "PreTrainedModel | PeftModel"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Answer:
    """What was said, and whether an end token came before the limit of new tokens.

    `text` is the answer without its reasoning and without special tokens; `raw` is all of it as the model wrote it, up to
    the end token.
    """

    text: str
    stopped: bool
    reasoning: str = ""
    raw: str = ""


def answer(
    model: LanguageModel,
    renderer: Renderer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int = 128,
    batch: int = 16,
    sampling: Sampling | None = None,
) -> list[str]:
    """The model's answer to each conversation, greedy unless `sampling` says otherwise.

    Conversations of like length share a batch, padded on the left under a mask.
    """
    prompts = [renderer.prompt_ids(list(messages)) for messages in conversations]
    return [said.text for said in complete(model, renderer, prompts, sampling or Sampling(max_new_tokens), batch)]


def complete(
    model: LanguageModel,
    renderer: Renderer,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch: int = 16,
    label: str = "",
) -> list[Answer]:
    """What follows each prompt (token ids), decoded without special tokens; progress is shown under `label`."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [Answer("", False)] * len(prompts)
    with asking(model):
        settings = generation_settings(renderer, sampling, can_cache(model))
        for first in follow(range(0, len(order), batch), label):
            chosen = order[first : first + batch]
            input_ids, mask = left_padded([prompts[index] for index in chosen], renderer.tokenizer.pad_token_id)
            output = generate(model, input_ids.to(model.device), mask.to(model.device), settings)
            for index, ids in zip(chosen, output[:, input_ids.shape[1] :].tolist(), strict=True):
                answers[index] = read_answer(ids, prompts[index], renderer)
    return answers


def generate(
    model: LanguageModel,
    input_ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    settings: GenerationConfig,
    streamer: TextIteratorStreamer | None = None,
    until: StoppingCriteriaList | None = None,
    choose: LogitsProcessorList | None = None,
) -> torch.Tensor:
    """transformers' `generate`: the prompts' tokens, each with its answer's behind them, (B, S + new tokens)."""
    ask = cast(Callable[..., torch.Tensor], model.generate)
    return ask(
        input_ids=input_ids_BS,
        attention_mask=mask_BS,
        generation_config=settings,
        streamer=streamer,
        stopping_criteria=until,
        logits_processor=choose,
    )


def opens_thought(prompt: Sequence[int], renderer: Renderer) -> bool:
    """Whether a prompt ends inside a thought that the answer goes on with."""
    return renderer.tokenizer.decode(list(prompt[-8:])).rstrip().endswith(THINK_OPEN)


def read_answer(ids: Sequence[int], prompt: Sequence[int], renderer: Renderer) -> Answer:
    """Generated tokens (end token and padding behind it included) as an answer, reasoning apart."""
    stops = set(renderer.stop_ids)
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    raw = renderer.tokenizer.decode(list(ids[:end]))
    said = split_answer(raw, renderer.chat_format, renderer.special_texts, opens_thought(prompt, renderer))
    return Answer(said.content, end < len(ids), said.reasoning, raw)


def stream(
    model: LanguageModel, renderer: Renderer, prompt: list[int], sampling: Sampling
) -> Generator[str, None, Answer]:
    """The answer to one prompt in pieces, as they come; returns it whole.

    Closing the iterator ends the generation.
    """
    streamer = TextIteratorStreamer(renderer.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ended = Event()
    failures: list[BaseException] = []
    outputs: list[int] = []

    def run() -> None:
        try:
            with asking(model):
                ids = torch.tensor([prompt], device=model.device)
                settings = generation_settings(renderer, sampling, can_cache(model))
                until = StoppingCriteriaList([_When(ended)])
                output = generate(model, ids, torch.ones_like(ids), settings, streamer, until)
            outputs.extend(output[0, len(prompt) :].tolist())
        except BaseException as error:  # handed to the reader of the stream, which would wait for ever
            failures.append(error)
            streamer.end()

    worker = Thread(target=run, daemon=True)
    worker.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        ended.set()
        worker.join()
    if failures:
        raise failures[0]
    return read_answer(outputs, prompt, renderer)


def fix_seed(seed: int | None) -> None:
    """Make the sampling that follows repeatable; None leaves it to chance."""
    if seed is not None:
        torch.manual_seed(seed)


def can_cache(model: LanguageModel) -> bool:
    """Whether generation may keep what it has computed.

    transformers 5.24 counts a cache's tokens in its attention layers, and a model of some families without one (a hybrid
    cut down to its linear layers) fails on its first token; Mamba, which counts by itself, does not.
    """
    kinds = getattr(base_model_of(model).config.get_text_config(), "layer_types", None) or ["full_attention"]
    if any(kind not in ("linear_attention", "conv") for kind in kinds):
        return True
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=True)
    except ValueError as error:
        if "get_seq_length" not in str(error):
            raise
        return False
    return True


def generation_settings(renderer: Renderer, sampling: Sampling, cache: bool = True) -> GenerationConfig:
    """transformers' settings for a choice of `sampling`; 0 for top_k takes away its unasked 50."""
    samples = sampling.temperature > 0
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        use_cache=cache,
        do_sample=samples,
        temperature=sampling.temperature if samples else None,
        top_p=sampling.top_p if samples else None,
        top_k=0 if samples else None,
        eos_token_id=list(renderer.stop_ids) or None,
        pad_token_id=renderer.tokenizer.pad_token_id,
    )


def check_fits(model: LanguageModel, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Raises ModelError when the prompt is empty, or prompt and answer do not fit the model's context."""
    if not prompt:
        raise ModelError("the prompt has 0 tokens; give at least one word")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and len(prompt) + max_new_tokens > context:
        raise ModelError(
            f"the prompt has {len(prompt):,} tokens and the answer may have {max_new_tokens:,}; the model's context "
            f"ends at {context:,}. Shorten the conversation (/clear in chat) or lower --max-new-tokens"
        )


class _When(StoppingCriteria):
    """Stops when the event is set."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.BoolTensor:
        ended = torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)
        return cast(torch.BoolTensor, ended)


@contextmanager
def asking(model: LanguageModel) -> Generator[None, None, None]:
    """No dropout, no gradients, the cache on; fp32 adapters on a 16-bit base multiply in the base's type.

    The model's own habits are set aside: transformers fills every field that is left open from them (a repetition
    penalty, a top-k), so that greedy would not be greedy.
    """
    was_training, used_cache = model.training, model.config.use_cache
    parts = cast("list[PreTrainedModel]", list(model.modules()))
    habits = [(part, part.generation_config) for part in parts if "generation_config" in vars(part)]
    dtypes = {parameter.dtype for parameter in model.parameters()}
    low = next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes), None)
    model.eval()
    model.config.use_cache = True
    for part, _ in habits:
        part.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, dtype=low, enabled=low is not None and len(dtypes) > 1):
            yield
    finally:
        model.train(was_training)
        model.config.use_cache = used_cache
        for part, habit in habits:
            part.generation_config = habit


def left_padded(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and mask, each (B, S), the prompts at the right edge."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask
