"""Config and scenario → the trace of a CPU run, on the meta device: packs and attention as `fitune train` computes them.

In: a transformers config, a `Scenario`, the length of a row. Out: a `Trace`.
Differs from a card's trace in what torch does otherwise on a CPU: autocast's list, attention's kernel, no workspaces.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from fitune.models.quantization.quantize import numel
from fitune.models.quantization.quantized_loading import PAGES_BYTES
from fitune.planning.scenario import Scenario
from fitune.planning.trace.autocast import FULL_ON_CPU, MetaAutocast
from fitune.planning.trace.cpu_memory_rules import quantized_kernels
from fitune.planning.trace.dry_run import DTYPES, Program
from fitune.planning.trace.packs import meta_pack, rows_of
from fitune.planning.trace.recorder import Recorder
from fitune.planning.trace.trace import Trace, kernels_of, notes_of, record
from fitune.planning.trace.upstream_patches import autocast_on_meta, cpu_attention, cpu_int8_products

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fitune.ops.packed_loss import Pack

aten = torch.ops.aten
# Operators whose answer depends on values, which meta tensors do not have; the others of the table are CUDA's.
BY_VALUE = (
    aten.index.Tensor,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._local_scalar_dense.default,
)


class CpuProgram(Program):
    """`Program` with packs as on a CPU."""

    on_card = False

    def read_weights(self) -> None:
        """The base; while it is quantized, pages of its files are there too, then they and malloc's holes are let go."""
        if not self.scenario.quantized:
            return super().read_weights()
        whole = sum(numel(parameter) for parameter in self.model.parameters()) * DTYPES[self.scenario.compute].itemsize
        pages = torch.empty(min(whole, PAGES_BYTES), dtype=torch.uint8, device=self.device)
        super().read_weights()
        del pages

    def make_pack(self) -> Pack:
        """The pack, and a model that takes it."""
        from fitune.ops.tree_attention import use_tree_attention

        scenario = self.scenario
        if self.device != "meta":
            return super().make_pack()
        use_tree_attention(self.bare())
        dtype = DTYPES[scenario.autocast if scenario.autocast != "none" else scenario.dense_type]
        return meta_pack(rows_of(scenario.seq_len, self.row_tokens, scenario.label_share), self.config, dtype)

    def chunk_logits(self) -> int | None:
        """A CPU's."""
        from fitune.ops.chunked_cross_entropy import CPU_CHUNK_LOGITS

        return CPU_CHUNK_LOGITS


def trace_cpu(config: PretrainedConfig, scenario: Scenario, row_tokens: int | None = None) -> Trace:
    """Run every phase of ``scenario`` as on a CPU, and write down what it allocates."""
    kernels = kernels_of(scenario)
    recorder = Recorder({**{operator: kernels[operator] for operator in BY_VALUE}, **quantized_kernels()})
    recorder.vocabulary = getattr(config.get_text_config(), "vocab_size", -1)
    mode = MetaAutocast(DTYPES[scenario.autocast], FULL_ON_CPU) if scenario.autocast != "none" else None
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(autocast_on_meta(mode, on_card=False))
        stack.enter_context(cpu_attention(mode))
        stack.enter_context(cpu_int8_products())
        program = CpuProgram(
            config,
            scenario.but(attention="eager" if scenario.attention == "eager" else "sdpa"),
            "meta",
            autocast=mode.enabled if mode else None,
            recomputing=mode.recomputing if mode else None,
        )
        program.row_tokens = row_tokens
        record(recorder, program, mode)
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
        notes=notes_of(program),
    )
