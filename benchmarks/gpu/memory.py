"""Predicted against measured memory of twenty chosen runs, the smallest set that touches every part of the plan.

    python benchmarks/gpu/memory.py --limit-s 100

One JSON object a run: peaks as measured, peaks as predicted, and how far the prediction is off. The runs are measured
one after the other on the card while other processes, on the CPU, predict them. `--device cpu` takes one tiny model, to
show that the script works.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent / "memory")]

from measure import COURSE, config_values, measure  # noqa: E402

from fitune.planning.scenario import Scenario  # noqa: E402

PACKED: dict[str, Any] = {"rows": "packed", "attention": "flash_attention_2", "rank": 32}


def chosen() -> list[tuple[str, dict[str, Any]]]:
    """(model, values of its scenario)."""
    opt = [
        ("opt-350m", {**COURSE, "tuning": tuning, "seq_len": length, "gradient_checkpointing": checkpointing,
                      "optimizer": "adamw_foreach", "attention": "eager", "lora_dropout": 0.0})
        for tuning, length, checkpointing in (
            ("full", 500, False), ("full", 2000, True), ("lora", 2000, False), ("lora", 2000, True),
        )
    ]  # fmt: skip
    one = "llama-3.2-1b"
    ones = [
        (one, {"seq_len": 2048}),
        (one, {"seq_len": 4096, "weights": "nf4"}),
        (one, {"seq_len": 4096, "weights": "nf4", "gradient_checkpointing": True}),
        (one, {"seq_len": 2048, "weights": "int8"}),
        (one, {"seq_len": 2048, "weights": "fp32", "tuning": "full", "gradient_checkpointing": True}),
        (one, {"seq_len": 512, "weights": "fp32", "tuning": "full", "optimizer": "paged_adamw_8bit"}),
        (one, {"seq_len": 1024, "batch": 4, "rows": "padded", "label_share": 0.25}),
        (one, {**PACKED, "seq_len": 8192}),
    ]
    eight = "llama-3.1-8b"
    eights = [
        (eight, {"seq_len": 2048}),
        (eight, {"seq_len": 4096, "weights": "nf4"}),
        (eight, {"seq_len": 4096, "weights": "nf4", "lora_dropout": 0.05}),
        (eight, {"seq_len": 4096, "weights": "nf4", "optimizer": "adamw_8bit", "gradient_checkpointing": True}),
        (eight, {**PACKED, "seq_len": 4096, "weights": "nf4"}),
        (eight, {**PACKED, "seq_len": 16384, "weights": "nf4", "gradient_checkpointing": True}),
        (eight, {**PACKED, "seq_len": 32768, "weights": "nf4", "gradient_checkpointing": True}),
        (eight, {**PACKED, "seq_len": 8192, "gradient_checkpointing": True}),
    ]
    return opt + ones + eights


def predicted(model: str, scenario: dict[str, Any], card: tuple[Any, ...]) -> dict[str, Any]:
    """The plan's peaks, in a process of its own."""
    from fitune.console import hush_libraries
    from fitune.planning.predict import Card, predict

    hush_libraries()
    plan = predict(config_values(model), Scenario.from_dict(scenario), Card(*card))
    return {
        "predicted_allocated_bytes": plan.allocated_peak_bytes,
        "predicted_reserved_bytes": plan.reserved_peak_bytes,
    }


def off(found: float, wanted: float) -> float:
    """By how much of the measured figure the prediction is off."""
    return round(found / wanted - 1, 4)


def answer(row: dict[str, Any], prediction: Future[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The measured row with the prediction beside it."""
    try:
        row |= prediction.result(timeout=max(seconds, 1))
    except Exception as error:  # a trace that fails is one of the things to be found out
        return {**row, "error": f"no prediction: {type(error).__name__}: {error}"[:300]}
    if "oom" not in row and "error" not in row and row["allocated_peak_bytes"]:
        row["allocated_off"] = off(row["predicted_allocated_bytes"], row["allocated_peak_bytes"])
        row["reserved_off"] = off(row["predicted_reserved_bytes"], row["reserved_peak_bytes"])
    return row


def card_of(device: str) -> tuple[Any, ...]:
    """Arguments of `Card` for the card that is here."""
    if device == "cpu":
        return ("none", 80 * 2**30, (8, 0), 500 * 2**20)
    import torch

    properties = torch.cuda.get_device_properties(0)
    return (properties.name, properties.total_memory, (properties.major, properties.minor), 500 * 2**20)


def main() -> None:
    """Measure and predict side by side; print rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit-s", type=float, default=100, help="begin no run after so many seconds")
    parser.add_argument("--processes", type=int, default=8, help="that predict")
    options = parser.parse_args()
    started, tiny = time.time(), options.device == "cpu"
    runs = [("tiny", {"seq_len": 64, "rank": 4})] if tiny else chosen()
    asked = [{"model": model, "scenario": Scenario(**values).to_dict()} for model, values in runs]
    card = card_of(options.device)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if tiny else options.processes, context) as pool:
        waiting = [(pool.submit(predicted, case["model"], case["scenario"], card), case) for case in asked]
        rows = []
        for prediction, case in waiting:
            if time.time() - started > options.limit_s:
                rows.append(({**case, "error": "no time left"}, prediction))
                continue
            rows.append((measure(case, options.device), prediction))
        for row, prediction in rows:
            print(json.dumps(answer(row, prediction, options.limit_s + 20 - (time.time() - started))), flush=True)
        pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
