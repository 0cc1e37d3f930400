"""One training step as `fitune train` takes it, on the meta device for the plan and on a GPU to measure it.

In: a transformers config and a `Scenario`. Out: a `Program` whose methods are the phases of a run.
Knows nothing of recording, allocators or GPUs' figures.

B rows, S tokens a row, N trained tokens.
"""

# bitsandbytes and torch's Module.__setattr__ carry no types that fit what is done here; other rules stay on.
# pyright: reportPrivateImportUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportReturnType=false, reportOptionalCall=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fitune.models.base_model import base_model_of
from fitune.models.mixture.experts import is_placeholder
from fitune.models.mixture.packed_experts import Packing, pack_experts
from fitune.models.quantization import QUANTIZATIONS
from fitune.models.quantization.quantize import QuantizationConfig, empty_layer, layers_to_pack, tell_peft
from fitune.models.towers import auto_class
from fitune.ops.fused_layers import use_tiles
from fitune.ops.offload.host_inputs import HostInputs, keep_inputs_on_host
from fitune.ops.optimizers import PLANNED
from fitune.planning.scenario import Scenario
from fitune.planning.trace.recorder import Recorder, autograd_node

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from fitune.ops.packed_loss import Pack

T = TypeVar("T")
LEARNING_RATE = 1e-5  # of the optimizer's own code, whose memory does not depend on it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_skeleton(config: PretrainedConfig, scenario: Scenario) -> PreTrainedModel:
    """The model class on the meta device, with quantized layers in place of linear ones where wanted."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kind = auto_class(config) or AutoModelForCausalLM
    dtype = DTYPES[scenario.dense_type]
    attention = scenario.attention
    # flash_attention_2 wants its package and a GPU when the model is made; its kernel is SDPA's flash, and the one
    # difference, that it never takes a mask, is the batch's: see make_batch.
    built_as = "sdpa" if attention == "flash_attention_2" else attention
    options: dict[str, Any] = {"attn_implementation": built_as, "dtype": dtype}
    try:
        with torch.device("meta"), no_init_weights():
            model = kind.from_config(config, **options)
    except ValueError as error:
        if "does not support" not in str(error) or built_as == "eager":
            raise
        options["attn_implementation"] = "eager"  # as transformers itself falls back when none is asked for
        with torch.device("meta"), no_init_weights():
            model = kind.from_config(config, **options)
    model.tie_weights()
    model.config.use_cache = scenario.use_cache and not scenario.gradient_checkpointing
    if scenario.quantized:
        quantize_skeleton(model, scenario)
    return model.train()


def quantize_skeleton(model: PreTrainedModel, scenario: Scenario) -> None:
    """Linear layers become the quantization's own, the output head left out, as transformers' own loader does."""
    kind, compute = QUANTIZATIONS[scenario.weights], DTYPES[scenario.compute]
    wanted = QuantizationConfig(scenario.weights, scenario.double_quant)
    for name in layers_to_pack(model, wanted, "meta"):
        made = empty_layer(model.get_submodule(name), wanted, compute)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    pack_experts(model, Packing(kind, compute, scenario.double_quant), None)
    tell_peft(model, kind)
    model.is_quantized = True


def materialise(model: nn.Module, scenario: Scenario, device: str) -> None:
    """Give every parameter its memory on ``device``, in the model's own order, as loading does.

    Values are random and small: no weight is read. A quantized layer's 16-bit weights live only while it is quantized.
    """
    dtype, kind = DTYPES[scenario.dense_type], QUANTIZATIONS.get(scenario.weights)
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        parameters, buffers = module._parameters, module._buffers  # pyright: ignore[reportPrivateUsage]
        for name, parameter in list(parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in done:
                if is_placeholder(parameter):
                    zeros = torch.zeros(1, dtype=parameter.dtype, device=device).expand(parameter.shape)
                    done[id(parameter)] = nn.Parameter(zeros, requires_grad=False)
                elif kind is not None and name == "weight" and kind.holds(module):
                    done[id(parameter)] = kind.pack(_filled(parameter.data, dtype, device), module, device)
                else:
                    wanted = parameter.dtype if type(parameter) is nn.Parameter else dtype
                    values = _filled(parameter.data, wanted, device)
                    done[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            parameters[name] = done[id(parameter)]
        for name, buffer in list(buffers.items()):
            if buffer is not None:
                buffers[name] = _filled(buffer, buffer.dtype, device)


def _filled(like: torch.Tensor, dtype: torch.dtype, device: str) -> torch.Tensor:
    made = torch.empty(like.shape, dtype=dtype, device=device)
    if device != "meta":
        if dtype.is_floating_point:
            made.normal_(0, 0.02)
        else:
            made.zero_()
    return made


def lora_attach(model: PreTrainedModel, scenario: Scenario) -> nn.Module:
    """PEFT's LoRA around the model; what is trained is lifted to fp32 when the scenario says so."""
    from fitune.adapters.inject import attach, lora_config

    if scenario.trained_dtype == "same":
        from peft import LoraConfig, get_peft_model

        made = LoraConfig(
            r=scenario.rank, lora_alpha=2 * scenario.rank, lora_dropout=scenario.lora_dropout, bias=scenario.bias,
            target_modules=scenario.targets if isinstance(scenario.targets, str) else list(scenario.targets),
            modules_to_save=list(scenario.modules_to_save) or None, use_dora=scenario.dora, task_type="CAUSAL_LM",
        )  # fmt: skip
        return get_peft_model(model, made, autocast_adapter_dtype=False)
    made = lora_config(
        model, rank=scenario.rank, alpha=2 * scenario.rank, dropout=scenario.lora_dropout, targets=scenario.targets,
        bias=scenario.bias, dora=scenario.dora, modules_to_save=scenario.modules_to_save,
        train_norms=scenario.train_norms, new_token_ids=list(range(scenario.new_tokens)),
    )  # fmt: skip
    return attach(model, made)


def freeze_layers(model: PreTrainedModel, count: int) -> None:
    """Neither the embeddings nor the first ``count`` layers are trained."""
    model.get_input_embeddings().requires_grad_(False)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in list(max(lists, key=len))[:count]:
        layer.requires_grad_(False)


def _entering(checkpoint: Callable[..., T], context: Callable[[], AbstractContextManager[object]]) -> Callable[..., T]:
    def checkpointed(function: Callable[..., object], *args: object, **kwargs: object) -> T:
        def entered(*inputs: object, **named: object) -> object:
            if autograd_node() is None:
                return function(*inputs, **named)
            with context():
                return function(*inputs, **named)

        return checkpoint(entered, *args, **kwargs)

    return checkpointed


class Program:
    """The phases of a run over one model.

    Args:
        config: a transformers configuration.
        scenario: the question.
        device: "meta", "cuda", or "cpu" for tests.
        autocast: makes the context of the forward pass; None takes torch.autocast.
        recomputing: makes the context in which checkpointing recomputes; None needs none.
    """

    on_card = True

    def __init__(
        self,
        config: PretrainedConfig,
        scenario: Scenario,
        device: str,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
        recomputing: Callable[[], AbstractContextManager[object]] | None = None,
    ):
        self.config, self.scenario, self.device = config, scenario, device
        self.autocast = autocast or self._torch_autocast
        self.recomputing = recomputing
        # A trained head's chunks are computed again in the backward pass, where a function mode is off.
        self._recompute_chunk = checkpoint if recomputing is None else _entering(checkpoint, recomputing)
        self.outputs: Any = None
        self.pack: Pack | None = None
        self.row_tokens: int | None = None  # of a pack; None is one row
        self.model: Any = build_skeleton(config, scenario)
        self.optimizer: Any = None
        self.host_inputs = HostInputs()
        self.states: dict[int, list[torch.Tensor] | int] | None = None  # the plan's stand-in for the optimizer's

    # ---- load

    def load(self) -> None:
        """Base weights, then PEFT's preparation, then the adapters."""
        scenario = self.scenario
        self.read_weights()
        if scenario.kbit_preparation:
            from peft import prepare_model_for_kbit_training

            self.model = prepare_model_for_kbit_training(self.model, use_gradient_checkpointing=False)
        if scenario.tuning == "lora":
            if not scenario.kbit_preparation:
                self.model.requires_grad_(False)
            with torch.device(self.device) if self.device == "meta" else nullcontext():
                self.model = lora_attach(self.model, scenario)
        else:
            self.model.requires_grad_(True)
            if scenario.frozen_layers:
                freeze_layers(self.model, scenario.frozen_layers)
            if scenario.trained_dtype == "fp32":
                for parameter in self.model.parameters():
                    if parameter.requires_grad and parameter.dtype != torch.float32:
                        parameter.data = parameter.data.float()
        if scenario.loss == "rewards":
            from fitune.models.heads import put_head

            put_head(self.model)
        if scenario.gradient_checkpointing:
            if scenario.reentrant and hasattr(self.model, "enable_input_require_grads"):
                self.model.enable_input_require_grads()
            options = {"use_reentrant": scenario.reentrant}
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            if self.recomputing is not None:
                self._recompute_within(self.recomputing)
            if scenario.activation_offloading and self.on_card:
                keep_inputs_on_host(self.model, self.host_inputs)
        if scenario.tiled_mlp:
            use_tiles(self.model)
        self.model.train()
        if scenario.rows == "packed" and scenario.loss == "labels" and scenario.attention != "eager":
            self.pack = self.make_pack()
        if scenario.autocast != "none":
            self._wrap_forward()

    def read_weights(self) -> None:
        """The base, from its files."""
        materialise(self.model, self.scenario, self.device)

    def make_pack(self) -> Pack:
        """Rows as fitune packs them. On meta the attention is the flash kernel's, which holds what FlexAttention does."""
        from fitune.planning.trace.packs import meta_pack, real_pack, rows_of

        rows = rows_of(self.scenario.seq_len, self.row_tokens, self.scenario.label_share)
        return meta_pack(rows) if self.device == "meta" else real_pack(rows, self.bare(), self.device)

    def bare(self) -> PreTrainedModel:
        """The model without PEFT around it."""
        return base_model_of(self.model)

    def _recompute_within(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Enter ``context`` around each recomputed layer: a function mode is off in the backward pass."""
        for module in self.model.modules():
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None:
                module._gradient_checkpointing_func = _entering(checkpoint, context)

    def _wrap_forward(self) -> None:
        """As accelerate prepares a model: autocast around its forward, outputs lifted to fp32."""
        from accelerate.utils.operations import convert_to_fp32

        forward, context = self.model.forward, self.autocast
        lifts = self.scenario.lift_outputs

        def wrapped(*args: object, **kwargs: object) -> object:
            with context():
                out = forward(*args, **kwargs)
            return convert_to_fp32(out) if lifts else out

        self.model.forward = wrapped

    def _torch_autocast(self) -> AbstractContextManager[object]:
        if self.scenario.autocast == "none":
            return nullcontext()
        return torch.autocast(self.device, dtype=DTYPES[self.scenario.autocast])

    def trained(self) -> list[nn.Parameter]:
        """Parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # ---- the step

    def make_batch(self, rows: int | None = None) -> dict[str, torch.Tensor]:
        """input_ids BS, labels BS, and what padded or packed rows need beside them."""
        scenario, device = self.scenario, self.device
        shape = (rows or scenario.batch, scenario.seq_len)
        ids = torch.ones(shape, dtype=torch.int64, device=device)
        batch = {"input_ids": ids, "labels": ids.clone()}
        if device != "meta" and scenario.label_share < 1:
            batch["labels"][:, : shape[1] - 1 - round(scenario.label_share * (shape[1] - 1))] = -100
        if scenario.rows == "padded" and scenario.attention != "flash_attention_2":
            batch["attention_mask"] = torch.ones(shape, dtype=torch.int64, device=device)
            if device != "meta":
                batch["attention_mask"][-1, 0] = 0
        elif scenario.rows == "packed" and self.pack is None:  # another tool's packs: positions that start anew
            half = torch.arange(shape[1], device=device) % max(shape[1] // 2, 1)
            batch["position_ids"] = half.expand(shape).contiguous()
        return batch

    def micro_batch(self) -> None:
        """Forward, loss and backward of one micro-batch."""
        loss = self.loss(self.make_batch() if self.pack is None else {})
        if self.scenario.accumulation > 1 and self.scenario.loss == "logits":
            loss = loss / self.scenario.accumulation
        torch.autograd.backward([loss])

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The scenario's loss path."""
        if self.pack is not None:
            from fitune.ops.packed_loss import pack_loss

            # A pack does not go through the wrapped forward: packed_trainer.py sets autocast itself.
            with self.autocast() if self.scenario.autocast != "none" else nullcontext():
                return pack_loss(
                    self.model, self.pack, 1, chunk_logits=self.chunk_logits(), recompute=self._recompute_chunk
                )
        if self.scenario.loss == "labels":
            from fitune.ops.label_loss import Chunking, label_loss

            chunking = Chunking(
                self.autocast if self.scenario.autocast != "none" else nullcontext,
                self.chunk_logits(),
                self._recompute_chunk,
            )
            return label_loss(self.model, batch, batch["labels"].numel(), chunking)
        if self.scenario.loss in ("rewards", "pairs"):
            with self.autocast() if self.scenario.autocast != "none" else nullcontext():
                return self._answers_loss(batch)
        out = self.model(**batch)
        if self.scenario.keep_outputs:
            self.outputs = out
        return out["loss"] if isinstance(out, dict) else out[0]

    def _answers_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """reward's and dpo's passes: the model's body, then a scalar at the rows' ends, or log-probabilities of answers.

        The reference of dpo is not here: its log-probabilities are taken before step one, or in a pass without gradients
        that has ended, and whose states are gone, before this one begins.
        """
        from fitune.models.heads import head_of
        from fitune.ops.packed_loss import split_model
        from fitune.ops.token_logprobs import RowBatch, entry_logprobs

        body, head = split_model(self.model)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        states = body(**inputs, use_cache=False).last_hidden_state
        states = states.reshape(-1, states.shape[-1])
        if self.scenario.loss == "rewards":
            ends = torch.zeros(2 * batch["input_ids"].shape[0], dtype=torch.int64, device=self.device)
            return torch.nn.functional.logsigmoid(head_of(self.model)(states.index_select(0, ends))).sum()
        count = max(round(self.scenario.label_share * (states.shape[0] - 1)), 1)
        places = torch.zeros(count, dtype=torch.int64, device=self.device)
        return entry_logprobs(
            states,
            head,
            RowBatch(
                inputs=inputs,
                places=places,
                tokens=places,
                entry_of=places,
                row_of=places,
                ends=places[:1],
                computed_tokens=count,
            ),
        ).sum()

    def chunk_logits(self) -> int | None:
        """Logits that a pack's loss makes at once."""
        from fitune.ops.chunked_cross_entropy import GPU_CHUNK_LOGITS

        return GPU_CHUNK_LOGITS

    def optimizer_step(self) -> None:
        """Clip, step, and let the gradients go."""
        scenario, parameters = self.scenario, self.trained()
        if scenario.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, scenario.max_grad_norm)
        if self.optimizer is None:
            self.optimizer = PLANNED[scenario.optimizer].make(parameters, LEARNING_RATE)
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def optimizer_step_only(self, recorder: Recorder, states: str, temporaries: str) -> None:
        """The optimizer's own code on meta; its states are named afterwards."""
        if self.optimizer is None:
            self.optimizer = PLANNED[self.scenario.optimizer].make(self.trained(), LEARNING_RATE)
        with recorder.labelled(temporaries):
            self.optimizer.step()
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        recorder.mark([value for value in kept if isinstance(value, torch.Tensor)], states)

    # ---- beside the step

    def evaluate(self) -> None:
        """The loss of one batch of held-out rows, without gradients."""
        self.model.eval()
        with torch.no_grad():
            self.loss(self.make_batch(self.scenario.eval_batch) if self.pack is None else {})
        self.model.train()

    def generate(self) -> None:
        """One prompt batch and the last answer token: the cache is longest then."""
        from transformers import DynamicCache

        scenario = self.scenario
        self.model.eval()
        rows, longest = scenario.generate_batch, scenario.prompt_tokens + scenario.new_answer_tokens
        prompt = torch.ones((rows, max(longest - 1, 1)), dtype=torch.int64, device=self.device)
        with torch.no_grad():
            out = self.model(
                input_ids=prompt, use_cache=True, past_key_values=DynamicCache(config=self.config),
                **self._last_logits(),
            )  # fmt: skip
            cache = out.past_key_values
            del out
            self.model(input_ids=prompt[:, -1:], use_cache=True, past_key_values=cache, **self._last_logits())
        self.model.train()

    def _last_logits(self) -> dict[str, int]:
        import inspect

        return (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(self.bare()).forward).parameters else {}
        )
