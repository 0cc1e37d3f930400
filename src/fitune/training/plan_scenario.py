"""What `fitune train` would do on a CUDA card, as the plan's plain values. Torch is not imported.

In: settings, and what is known of the rows. Out: `fitune.planning.scenario.Scenario`.
Knows nothing of models and cards. Each value names the place in this package that makes it so; a change there is
a change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, cast

from fitune.adapters.locate import find_adapter, lora_options
from fitune.config.sections import LoraSettings, Settings
from fitune.data.packing.largest_pass import LargestPass
from fitune.data.token_rows import PairRow, PromptRow, TokenRow
from fitune.methods.registry import METHODS
from fitune.methods.rl_config import RlSettings
from fitune.models.quantization import QUANTIZATIONS
from fitune.planning.scenario import Compute, Scenario

# Fields of a scenario that no run of fitune changes, and why: they describe other tools' loops.
NEVER = {
    "kbit_preparation": "models/quantization/quantize.py does not lift what stays in 16 bits",
    "frozen_layers": "there is no such setting: full trains every layer",
    "trained_dtype": "what is trained is fp32 (components.load, inject.attach)",
    "optimizer_step": "a run ends with an optimizer step",
    "reentrant": "arguments._checkpointing asks for the kind without re-entry",
    "use_cache": "ops/label_loss.py passes use_cache=False",
    "lift_outputs": "Trainer's accelerate always lifts them",
    "keep_outputs": "a step's outputs go with its loss",
    "steps": "the second step has every state",
    "save": "every run writes checkpoints",
}


class BaseValues(TypedDict, total=False):
    """Fields of a `Scenario`: how the base is stored."""

    weights: str
    compute: Compute
    double_quant: bool


class AdapterValues(TypedDict, total=False):
    """Fields of a `Scenario`: what LoRA trains."""

    rank: int
    targets: tuple[str, ...] | Literal["all-linear"]
    lora_dropout: float
    bias: Literal["none", "all", "lora_only"]
    train_norms: bool
    dora: bool
    modules_to_save: tuple[str, ...]
    new_tokens: int


class EvaluationValues(TypedDict, total=False):
    """Fields of a `Scenario`: the batches beside the step."""

    eval_batch: int
    generate_batch: int
    prompt_tokens: int
    new_answer_tokens: int


def scenario_of(
    settings: Settings,
    *,
    longest_tokens: int,
    label_share: float,
    pack_tokens: int | None,
    eval_pack_tokens: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int = 0,
    fast_bf16: bool = True,
) -> Scenario:
    """The training step, evaluation and checkpoint of ``settings`` on a CUDA card.

    Args:
        longest_tokens, label_share, pack_tokens, eval_pack_tokens, prompt_tokens: as in `LargestPass`.
        new_tokens: tokens that the chat template adds to the model, whose embedding rows are trained.
        fast_bf16: whether the card multiplies bf16 fast (compute capability 8.0 and up), for precision auto.

    Raises:
        ValueError: a combination that cannot be trained.
    """
    loss = METHODS[settings.method].traced_loss
    if loss is None:
        raise ValueError(
            f"the plan does not know method {settings.method} yet; plan method sft at twice the batch for a lower bound"
        )
    train = settings.train
    precision = precision_on_card(settings.model.precision, fast_bf16)
    micro = train.micro_rows
    packed = pack_tokens is not None
    sides = sides_of(settings)
    return Scenario(
        **_base(settings, precision),
        **_adapters(settings, new_tokens),
        tuning=train.tuning,
        optimizer=train.optimizer,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        tiled_mlp=train.tiled_mlp,
        activation_offloading=train.activation_offloading,
        # packed: at most so many packs a step
        accumulation=train.batch_size // micro,
        # arguments.training_arguments: Trainer's autocast follows the precision
        autocast="none" if precision == "fp32" else precision,
        attention=_attention(settings, packed),
        rows="packed" if packed else "padded",
        batch=1 if packed else micro * sides,
        seq_len=pack_tokens if pack_tokens is not None else longest_tokens,
        label_share=label_share,
        loss=loss,
        save=True,
        **_evaluation(settings, longest_tokens, pack_tokens, eval_pack_tokens, prompt_tokens),
    )


def precision_on_card(asked: Literal["auto"] | Compute, fast_bf16: bool) -> Compute:
    """`choose_precision` for a card that need not be there."""
    return asked if asked != "auto" else "bf16" if fast_bf16 else "fp16"


def packs_rows(settings: Settings) -> bool:
    """Whether training will try to pack rows (packing.choose_packing may still find that the model refuses)."""
    return settings.data.packing != "off" and settings.model.attention != "flash_attention_2"


def rows_of_length(settings: Settings, tokens: int, label_share: float = 1.0) -> LargestPass:
    """The largest pass when every row has ``tokens`` tokens, for a plan without data."""
    micro = settings.train.micro_rows
    if (rl := sampled_by(settings)) is not None:  # of a row's tokens the last rl.max_new_tokens are the answer
        unit, answers = sampled_sizes(settings, rl, max(tokens - rl.max_new_tokens, 1))[0]
        pack = micro * unit
        if packs_rows(settings):
            return LargestPass(longest_tokens=unit, label_share=answers / unit, pack_tokens=pack, eval_pack_tokens=pack)
        return LargestPass(longest_tokens=tokens, label_share=min(1.0, rl.max_new_tokens / tokens))
    micro *= sides_of(settings)
    pack = micro * tokens if packs_rows(settings) else None
    return LargestPass(longest_tokens=tokens, label_share=label_share, pack_tokens=pack, eval_pack_tokens=pack)


def largest_pass_of(settings: Settings, rows: Sequence[tuple[int, int]]) -> LargestPass:
    """The largest pass over rows of which only lengths are known, whatever rows the shuffle brings together.

    A padded batch: the longest row beside the most trained tokens. A pack holds rows of one step side by side, at most
    as many tokens as a padded batch of the longest (packing.choose_packing); prefixes that rows share make it shorter.

    Args:
        rows: (tokens, trained tokens) of each row.
    """
    micro = settings.train.micro_rows
    lengths = sorted((length for length, _ in rows), reverse=True)
    trained = sorted((count for _, count in rows), reverse=True)
    padded = micro * lengths[0]
    if not packs_rows(settings):
        micro *= sides_of(settings)
        padded = micro * lengths[0]
        return LargestPass(
            longest_tokens=lengths[0], label_share=min(1.0, max(sum(trained[:micro]), 1) / max(padded - micro, 1))
        )
    pack = max(lengths[0], min(padded, sum(lengths[: settings.train.batch_size])))
    share = max(sum(trained[: settings.train.batch_size]), 1) / max(pack - 1, 1)
    return LargestPass(longest_tokens=lengths[0], label_share=min(1.0, share), pack_tokens=pack, eval_pack_tokens=pack)


def with_changes(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """The same settings with some (dotted names) changed."""
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        if not section:
            settings = settings.model_copy(update={name: value})
            continue
        part = getattr(settings, section).model_copy(update={name: value})
        settings = settings.model_copy(update={section: part})
    return settings


def sides_of(settings: Settings) -> int:
    """Rows of a padded pass for each row of the batch: both answers of a pair, or all that are sampled to a prompt."""
    method, rl = METHODS[settings.method], sampled_by(settings)
    if rl is not None and method.sampling is not None:
        return rl.num_generations or method.sampling.num_generations
    return method.row_sides


def sampled_by(settings: Settings) -> RlSettings | None:
    """How the method samples its own answers; None for one that does not."""
    return settings.own if isinstance(settings.own, RlSettings) else None


def sampled_sizes(settings: Settings, rl: RlSettings, prompt_tokens: int) -> list[tuple[int, int]]:
    """(tokens, trained tokens) of a prompt with all its answers as one unit of a pack; padded, of each of its rows."""
    new, count = rl.max_new_tokens, sides_of(settings)
    if packs_rows(settings):
        return [(prompt_tokens + count * new, count * new)]
    return [(prompt_tokens + new, new)] * count


def _base(settings: Settings, precision: Compute) -> BaseValues:
    """How the base is stored. What does not matter keeps its default, so that equal questions are equal."""
    if settings.train.tuning == "full":
        if settings.model.quantization != "none":  # config/rules.py refuses it too; a grid changes settings after that
            raise ValueError(
                "quantized weights cannot be trained; train.tuning is full and model.quantization "
                f"{settings.model.quantization}: use train.tuning lora, or model.quantization none"
            )
        return {"weights": "fp32"}  # components.load: the masters of full fine-tuning
    if settings.model.quantization == "none":
        return {"weights": precision}
    kind = QUANTIZATIONS[settings.model.quantization]
    return {
        "weights": kind.name,
        "compute": precision,
        "double_quant": kind.double_quant and settings.model.double_quant,
    }


def _adapters(settings: Settings, new_tokens: int) -> AdapterValues:
    """What LoRA trains; nothing for full fine-tuning."""
    if settings.train.tuning == "full":
        return {}
    lora = settings.lora
    if lora.continue_from is not None:
        start = find_adapter(lora.continue_from, settings.run.folder, "lora.continue_from")
        lora = LoraSettings.model_validate(lora_options(start))
    return {
        "rank": lora.rank,
        "targets": lora.targets if isinstance(lora.targets, str) else tuple(lora.targets),
        "lora_dropout": lora.dropout,
        "bias": lora.bias,
        "train_norms": lora.train_norms,
        "dora": lora.dora,
        "modules_to_save": tuple(lora.modules_to_save),
        "new_tokens": new_tokens,
    }


def _attention(settings: Settings, packed: bool) -> Literal["eager", "sdpa", "flash_attention_2"]:
    """FlexAttention over a pack holds what the flash kernel holds (query, key, value, result, log-sum-exp), and like it
    no square mask: the plan traces flash for it."""
    asked = settings.model.attention
    if packed:
        return "flash_attention_2"
    return "sdpa" if asked == "auto" else asked


def _evaluation(
    settings: Settings, longest: int, pack: int | None, eval_pack: int | None, prompt: int | None
) -> EvaluationValues:
    """Batches beside the step; without held-out rows only the answers that a method samples."""
    if (rl := sampled_by(settings)) is not None:  # rollout.sample_answers; the reference's pass has no gradients either
        new, count = rl.max_new_tokens, sides_of(settings)
        asked = longest - (new if pack is None else count * new)
        return {
            "eval_batch": 1 if pack is not None else count * settings.train.micro_rows,
            "generate_batch": min(rl.generation_batch_size, settings.train.batch_size * count),
            "prompt_tokens": max(asked, 1),
            "new_answer_tokens": new,
        }
    if settings.data.eval is None and settings.data.eval_share == 0:
        return {}
    micro = settings.train.micro_rows * sides_of(settings)
    values: EvaluationValues = {"eval_batch": micro if pack is None else max(1, -(-(eval_pack or pack) // pack))}
    answers = min(
        settings.eval.samples, settings.train.batch_size
    )  # trainer_parts.generation_eval_of: rows answered at once
    if answers and METHODS[settings.method].answer_metrics:
        values |= {
            "generate_batch": answers,
            "prompt_tokens": longest if prompt is None else prompt,
            "new_answer_tokens": settings.eval.max_new_tokens,
        }
    return values


def row_sizes(settings: Settings, rows: Sequence[TokenRow | PairRow | PromptRow]) -> tuple[tuple[int, int], ...]:
    """(tokens, trained tokens) of each row as a pass sees it: a pair in a pack has its prompt once, padded it is two rows."""
    if (rl := sampled_by(settings)) is not None:
        return tuple(size for row in rows for size in sampled_sizes(settings, rl, row.num_tokens))
    if METHODS[settings.method].reads != "pairs":
        return tuple((row.num_tokens, row.num_trained) for row in rows)
    pairs = cast("Sequence[PairRow]", rows)
    if packs_rows(settings):
        return tuple((pair.packed_tokens, pair.num_trained) for pair in pairs)
    return tuple((row.num_tokens, row.num_trained) for pair in pairs for row in pair.rows)


def label_share_of(rows: Sequence[TokenRow]) -> float:
    """Trained tokens of the longest row over its tokens; some rows of a batch have more, the longest decides."""
    longest = max(rows, key=lambda row: row.num_tokens)
    return max(longest.num_trained, 1) / max(len(longest.input_ids) - 1, 1)
