"""A trainer whose layer inputs lie on the host, and whose blocks are computed in tiles, learns what it would have learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_fixtures import collate, losses, make_rows, tiny_llama

from fitune.adapters.inject import attach, lora_config
from fitune.ops.fused_layers import use_tiles
from fitune.ops.offload.host_inputs import HostInputs
from fitune.trainers.arguments import schedule_of, training_arguments
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import RunLog
from fitune.trainers.listeners.inputs_on_host import InputsOnHost


def run(folder: Path, inputs: HostInputs | None, tile: int = 0) -> list[float]:
    rows, base = make_rows(12), tiny_llama(lora=False)
    model = attach(base, lora_config(base, rank=4))
    if tile:
        use_tiles(model, tile)
    arguments = training_arguments(
        folder, schedule_of(12, 4, 2, 2.0, None, 0.1, None, None), epochs=2.0, max_steps=None, learning_rate=1e-2,
        lr_scheduler="cosine", optimizer="adamw", weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=True,
        seed=1, mixed_precision="fp32", device="cpu", evaluates=False, best_metric="loss", log_steps=1, report_to=[],
        run_name="test", overrides={},
    )  # fmt: skip
    logged: list[dict] = []
    callbacks = [RunLog(logged.append, lambda: 0), *([InputsOnHost(inputs)] if inputs else [])]
    trainer = FituneTrainer(model, arguments, rows, [], collate, None, 2, callbacks)
    trainer.logged = logged
    trainer.train()
    return losses(trainer)


def test_losses_are_equal_to_the_bit_and_in_tiles_to_rounding(tmp_path: Path):
    wanted, inputs = run(tmp_path / "plain", None), HostInputs(smallest_bytes=0)
    assert run(tmp_path / "host", inputs) == wanted and len(wanted) == 6
    assert inputs.peak_bytes >= 2 * 2 * 32 * 4 and inputs.host_bytes == 0
    assert run(tmp_path / "tiles", HostInputs(smallest_bytes=0), tile=4) == pytest.approx(wanted, rel=1e-5)
