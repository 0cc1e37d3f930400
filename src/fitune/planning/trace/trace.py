"""Config and scenario → the trace: every storage of a run's phases, in order, on the meta device.

In: a transformers config, a `Scenario`, the GPU's compute capability. Out: a frozen `Trace` of plain numbers.
"""

from __future__ import annotations

import gc
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, cast

from fitune.models.quantization.quantize import experts_left, numel
from fitune.planning.scenario import Scenario
from fitune.planning.trace.autocast import MetaAutocast
from fitune.planning.trace.cuda_memory_rules import table
from fitune.planning.trace.dry_run import DTYPES, Program
from fitune.planning.trace.meta_shortcuts import quick_table
from fitune.planning.trace.optimizer_memory import STATES, optimizer_step
from fitune.planning.trace.recorder import WORKSPACE, Recorder
from fitune.planning.trace.upstream_patches import autocast_on_meta, cuda_functions, own_quantization_maps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._ops import OpOverload
    from transformers import PretrainedConfig

    from fitune.planning.trace_cache import TraceValues

# cuBLAS' workspace, parseChosenWorkspaceSize in aten/cuda/CublasHandlePool.cpp: 4096 KiB twice and 16 KiB eight times,
# or 32 MiB on Hopper.
CUBLAS_OTHERS, CUBLAS_HOPPER = 2 * 4096 * 1024 + 8 * 16 * 1024, 32 * 2**20

Work = dict[tuple[str, int, int], int]


@dataclass(frozen=True)
class Trace:
    """Events of a run; see `Recorder` for `order`, `moments`, `sizes` and `categories`."""

    order: list[int]
    moments: list[int]
    moment_names: list[str]
    sizes: list[int]
    categories: list[str]
    phases: list[tuple[int, str]]
    trained_parameters: int
    total_parameters: int
    managed_bytes: int = 0
    """Paged optimizer states: CUDA managed memory, which torch's allocator does not count."""
    host_bytes: int = 0
    """Pinned memory of the host that layer inputs take at most."""
    work: dict[str, list[list[str | int]]] = field(default_factory=dict[str, list[list[str | int]]])
    """Of one micro-batch: {"operators": [[kind, flops, moved bytes, how often], …]}; see `Recorder.work`."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> TraceValues:
        """Plain values, for JSON; the lists themselves, for a trace has some 100,000 events."""
        return cast("TraceValues", {field.name: getattr(self, field.name) for field in fields(self)})


def kernels_of(scenario: Scenario, flash_package: bool = False) -> dict[OpOverload[..., object], Callable[..., object]]:
    """The table of operators for the masks of a scenario."""
    labels = max(round(scenario.label_share * (scenario.seq_len - 1)), 1)
    # A full batch has an all-ones mask, which is dropped; a padded or packed one has not.
    return table(
        labels, (scenario.batch, scenario.eval_batch), scenario.seq_len, scenario.rows == "full", flash_package
    )


def trace(config: PretrainedConfig, scenario: Scenario, capability: tuple[int, int] = (8, 0)) -> Trace:
    """Run every phase of ``scenario`` over ``config``'s model on the meta device, and write down what it allocates."""
    kernels = kernels_of(scenario, scenario.attention == "flash_attention_2")
    recorder = Recorder({**quick_table(), **kernels})
    recorder.workspace_bytes = CUBLAS_HOPPER if capability[0] == 9 else CUBLAS_OTHERS
    recorder.vocabulary = getattr(config.get_text_config(), "vocab_size", -1)
    mode = MetaAutocast(DTYPES[scenario.autocast]) if scenario.autocast != "none" else None
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        forced = "flash" if scenario.attention == "flash_attention_2" else None
        stack.enter_context(autocast_on_meta(mode))
        stack.enter_context(cuda_functions(capability, recorder, forced, mode))
        program = Program(
            config,
            scenario,
            "meta",
            autocast=mode.enabled if mode else None,
            recomputing=mode.recomputing if mode else None,
        )
        managed, work = record(recorder, program, mode)
    total = sum(numel(parameter) for parameter in program.model.parameters())
    return Trace(
        order=recorder.order,
        moments=recorder.moments,
        moment_names=recorder.moment_names,
        sizes=recorder.sizes,
        categories=recorder.categories,
        phases=recorder.phases,
        trained_parameters=sum(p.numel() for p in program.trained()),
        total_parameters=total,
        managed_bytes=managed,
        host_bytes=program.host_inputs.peak_bytes,
        work={"operators": [[*operator, count] for operator, count in work.items()]},
        notes=notes_of(program),
    )


def notes_of(program: Program) -> tuple[str, ...]:
    """What of the base is stored otherwise than the scenario's words say."""
    scenario = program.scenario
    left = experts_left(program.model, scenario.dense_type) if scenario.quantized else None
    return () if left is None else (left,)


def record(recorder: Recorder, program: Program, mode: MetaAutocast | None) -> tuple[int, Work]:
    """Every phase of the program's run into the recorder.

    Returns:
        Bytes of managed memory that the optimizer holds, and the operators of one micro-batch.
    """
    scenario, managed = program.scenario, 0
    work: Work = {}
    with ExitStack() as stack:
        gc.collect()
        gc.freeze()  # what is there now, torch's own modules above all, need not be looked through after each step
        stack.callback(gc.unfreeze)
        stack.callback(gc.enable)
        gc.disable()
        stack.enter_context(own_quantization_maps(scenario))
        stack.enter_context(recorder)
        recorder.begin("load")
        program.load()
        if program.on_card or scenario.quantized:
            # transformers' Trainer.train begins with accelerator.free_memory: torch.cuda.empty_cache. On a CPU: malloc_trim,
            # once a base was packed (models/quantization/quantized_loading.py).
            recorder.empty_cache()
        recorder.mark(list(program.trained()), "adapters" if scenario.tuning == "lora" else "weights")
        stack.enter_context(recorder.following(program.model))
        if mode:
            stack.enter_context(mode)
        for step in range(1, scenario.steps + 1):
            if step > 1 and recorder.repeat(f"step {step}", lasting=(STATES, WORKSPACE)):
                continue
            recorder.begin(f"step {step}")
            for micro in range(min(scenario.accumulation, 2)):
                recorder.work = work if step == 1 and micro == 0 else None
                program.micro_batch()
                recorder.work = None
                recorder.mark([p.grad for p in program.trained()], "gradients")
            if scenario.optimizer_step:
                managed = optimizer_step(recorder, program)
            gc.collect()
        if scenario.eval_batch:
            recorder.begin("evaluation")
            program.evaluate()
        if scenario.generate_batch and scenario.prompt_tokens:
            recorder.begin("generation")
            program.generate()
        if scenario.save and program.on_card:
            # safetensors copies one tensor after the other to the host: nothing new on the card.
            recorder.begin("checkpoint")
    return managed, work
