"""How faithful a copy of a model is: the same tokens through both, logits and choices compared. T positions, V tokens.

In: a model and the prompts. Out: a `Probe` (prompts, the model's own greedy answers, its logits over them), against which
each copy is measured by one forward pass a prompt. Where a copy's likeliest token is the same at every position of an
answer, its own greedy answer is that answer: nothing has to be generated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fitune.data.examples import Message
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.evaluation.generation import Sampling, asking, can_cache, generate, generation_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fitune.evaluation.generation import LanguageModel

# (largest mean divergence in nats, least share of answers' tokens unchanged) that is no cause for a warning, by what was
# done to the weights. 32, 16, 8 and 4 bits: two to four times what the built-in model showed after Pig Latin
# (docs/export.md). 6, 5, 3 and 2 bits were not measured so: they lie between and beyond.
THRESHOLDS = {
    "same": (1e-6, 1.0),
    "32-bit": (1e-4, 0.99),
    "16-bit": (0.005, 0.98),
    "8-bit": (0.02, 0.96),
    "6-bit": (0.1, 0.90),
    "5-bit": (0.2, 0.80),
    "4-bit": (0.5, 0.70),
    "3-bit": (1.0, 0.50),
    "2-bit": (2.0, 0.30),
    "base": (0.5, 0.70),
}


@dataclass(frozen=True)
class Probe:
    """Prompts as token ids, what the reference answers to each, and its logits there: one (T, V) a prompt, fp32."""

    conversations: tuple[tuple[Message, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    logits_TV: tuple[Tensor, ...]


@dataclass(frozen=True)
class Asked:
    """What a copy says to a probe: its logits, the ids of the prompts' texts (None: it says nothing), what is wrong with it."""

    logits_TV: tuple[Tensor, ...] | None
    prompts: tuple[tuple[int, ...], ...] | None
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One copy against the reference.

    Attributes:
        copy: what was measured.
        largest, mean: absolute differences of logits.
        divergence: mean KL(reference ‖ copy) a position, in nats.
        tokens_same: share of positions whose likeliest token is the reference's.
        answers_same: share of greedy answers that are unchanged from first to last token.
        loss: what was done to the weights, a key of THRESHOLDS.
    """

    copy: str
    largest: float
    mean: float
    divergence: float
    tokens_same: float
    answers_same: float
    loss: str

    def warnings(self) -> list[str]:
        """What is worse than such a copy should be."""
        most, least = THRESHOLDS[self.loss]
        found: list[str] = []
        if not self.divergence <= most:  # NaN fails too
            found.append(f"{self.copy}: divergence {self.divergence:.2g} nats a token, more than {most:g}")
        if self.tokens_same < least:
            found.append(f"{self.copy}: {self.tokens_same:.1%} of the answers' tokens unchanged, less than {least:.0%}")
        return found


@dataclass(frozen=True)
class Report:
    """The fidelity of an export: a row a copy, and how many rendered prompts have the same token ids."""

    reference: str
    arithmetic: str
    prompts: int
    tokens: int
    rows: tuple[Row, ...]
    prompts_same: int | None
    first_difference: str | None = None
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """Everything beyond its threshold; other token ids are always one."""
        found = [*self.faults, *(text for row in self.rows for text in row.warnings())]
        if self.prompts_same is not None and self.prompts_same < self.prompts:
            found.append(
                f"{self.prompts - self.prompts_same} of {self.prompts} prompts have other token ids in the copy: "
                f"{self.first_difference}"
            )
        return found

    def to_dict(self) -> dict[str, object]:
        """Plain values for fidelity.json."""
        return {**asdict(self), "warnings": self.warnings(), "thresholds": THRESHOLDS}


def make_probe(
    model: LanguageModel, renderer: Renderer, conversations: Sequence[Sequence[Message]], max_new_tokens: int = 32
) -> Probe:
    """The reference's greedy answers to the conversations and its logits over them."""
    prompts = [tuple(renderer.prompt_ids(list(messages))) for messages in conversations]
    answers: list[tuple[int, ...]] = []
    with asking(model):
        settings = generation_settings(renderer, Sampling(max_new_tokens), can_cache(model))
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            said = generate(model, ids, torch.ones_like(ids), settings)
            answers.append(tuple(said[0, len(prompt) :].tolist()))
    logits = answer_logits(model, prompts, answers)
    asked = tuple(map(tuple, conversations))
    return Probe(asked, tuple(prompts), tuple(answers), tuple(logits))


def answer_logits(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    whose: str = "the model",
) -> list[Tensor]:
    """Logits that choose each token of each answer: (T, V) a prompt, fp32 on the CPU.

    Raises:
        ModelError: some are NaN, which no comparison would show; ``whose`` they are is said.
    """
    found: list[Tensor] = []
    with asking(model):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
            logits_BTV = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits
            logits_TV = logits_BTV[0].float().cpu()
            if logits_TV.isnan().any():
                raise ModelError(
                    f"{whose} gives logits that are no numbers (NaN), so nothing can be compared: weights of it are "
                    "damaged, or too large for their type; see `fitune evaluate` on the base alone"
                )
            found.append(logits_TV)
    return found


def compare(probe: Probe, model: LanguageModel, copy: str, loss: str) -> Row:
    """Measure a copy of the reference."""
    found = answer_logits(model, probe.prompts, probe.answers, f"the copy ({copy})")
    return compare_logits(probe, found, copy, loss)


def compare_logits(probe: Probe, found: Sequence[Tensor], copy: str, loss: str) -> Row:
    """Measure a copy by its logits over the probe. It may have more or fewer spare rows: the common ones count."""
    largest, total, divergence, same, whole, count, values = 0.0, 0.0, 0.0, 0, 0, 0, 0
    for want_TV, have_TV in zip(probe.logits_TV, found, strict=True):
        width = min(want_TV.shape[-1], have_TV.shape[-1])
        want_TV, have_TV = want_TV[:, :width], have_TV[:, :width]
        difference = (want_TV - have_TV).abs()
        largest = max(largest, difference.max().item())
        total += difference.sum().item()
        values += difference.numel()
        want, have = (log_softmax(logits.double(), -1) for logits in (want_TV, have_TV))
        divergence += (want.exp() * (want - have)).sum().item()
        equal = want_TV.argmax(-1) == have_TV.argmax(-1)
        same += int(equal.sum())
        whole += int(equal.all())
        count += len(equal)
    return Row(
        copy=copy,
        largest=largest,
        mean=total / values,
        divergence=divergence / count,
        tokens_same=same / count,
        answers_same=whole / len(probe.prompts),
        loss=loss,
    )


def same_prompts(probe: Probe, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str | None]:
    """How many conversations the copy's tokenizer and template render to the same ids, and the first that differs."""
    same, first = 0, None
    for messages, ids in zip(probe.conversations, probe.prompts, strict=True):
        try:
            text = tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", [dict(message) for message in messages]),
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template raises whatever its author chose
            first = first or f"the copy's template fails: {error}"
            continue
        theirs = tuple(tokenizer(cast(str, text), add_special_tokens=False)["input_ids"])
        same += theirs == ids
        first = first or _difference(theirs, ids, messages)
    return same, first


def same_ids(probe: Probe, found: Sequence[tuple[int, ...]]) -> tuple[int, str | None]:
    """How many prompts a copy splits into the same ids, and the first that differs."""
    differences = [
        _difference(theirs, ids, messages)
        for theirs, ids, messages in zip(found, probe.prompts, probe.conversations, strict=True)
    ]
    return differences.count(None), next((text for text in differences if text), None)


def _difference(theirs: tuple[int, ...], ids: tuple[int, ...], messages: Sequence[Message]) -> str | None:
    """Where the ids of a prompt part, in words; None where they are the same."""
    if theirs == ids:
        return None
    at = next((i for i, pair in enumerate(zip(theirs, ids, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(theirs), len(ids)) if at is None else at
    return f"token {at} is {theirs[at : at + 1]} instead of {ids[at : at + 1]} in {messages[-1]['content']!r:.60}"
