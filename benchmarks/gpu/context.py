"""The longest row: a step of Llama-3.1-8B in NF4, rank 32, at the length that the plan says fits 80 GB, and one beyond.

    python benchmarks/gpu/context.py

The card is cut to 80 GB of its memory. One JSON object for the plan's limit and one for each length: the one that is
said to fit has to survive two steps, and the next has to run out of memory if the limit is sharp.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent / "memory")]

from measure import config_values, measure  # noqa: E402

from fitune.planning.predict import Card, predict  # noqa: E402
from fitune.planning.scenario import Scenario  # noqa: E402
from fitune.planning.search.max_fit import Limit, largest  # noqa: E402

LARGEST_ROW: dict[str, Any] = {
    "weights": "nf4", "rank": 32, "rows": "packed", "attention": "flash_attention_2", "gradient_checkpointing": True,
}  # fmt: skip
STEP = 4096
CONTEXT_BYTES = 500 * 2**20


def limit_of(model: str, usable_bytes: int, values: dict[str, Any], start: int, step: int, most: int) -> Limit:
    """The largest multiple of ``step`` tokens that the plan says fits."""
    config, card = config_values(model), Card("80 GB", usable_bytes, (9, 0), CONTEXT_BYTES)

    def plan_at(tokens: int) -> Any:
        return predict(config, Scenario(**values, seq_len=tokens), card, only_plans=True)

    return largest(plan_at, usable_bytes, most, start, step)


def main() -> None:
    """Plan, then measure both sides of the border."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gb", type=float, default=79.1, help="GiB of the card: 79.1 are an H100's")
    options = parser.parse_args()
    tiny = options.device == "cpu"
    usable = int(options.gb * 2**30)
    if tiny:
        model, limit = "tiny", limit_of("tiny", 600 * 2**20, {"rank": 4, "rows": "packed"}, 256, 256, 4096)
    else:
        import torch

        model, limit = "llama-3.1-8b", limit_of("llama-3.1-8b", usable, LARGEST_ROW, 114_688, STEP, 2**20)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min((usable - CONTEXT_BYTES) / total, 1.0))
    print(json.dumps({"fits_tokens": limit.value, "too_large_tokens": limit.too_large}), flush=True)
    for tokens, fits in ((limit.value, True), (limit.too_large, False)):
        if tokens is None:
            continue
        values = {"rank": 4, "rows": "packed"} if tiny else LARGEST_ROW
        row = measure({"model": model, "scenario": Scenario(**values, seq_len=tokens).to_dict()}, options.device)
        print(json.dumps({"tokens": tokens, "said_to_fit": fits, "ran": "oom" not in row, **row}), flush=True)


if __name__ == "__main__":
    main()
