"""Trace questions in whatever environment this runs in: JSON lines in, JSON lines out.

    python benchmarks/memory/trace_rows.py < questions.jsonl > answers.jsonl

Traces are cached by content, so an interrupted comparison goes on.
compare.py runs it with its own Python and, for the course's tables, with one of late 2024 (torch 2.5.1,
transformers 4.46.2, peft 0.13.2, bitsandbytes 0.45.2).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
warnings.simplefilter("ignore")
logging.disable(logging.ERROR)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def copied_results(model: object) -> None:
    """LLM.int8 results are copied, as bitsandbytes did until late 2024.

    Without the copy Falcon's in-place sum over the result of a custom function fails, in training as in a trace.
    """
    from bitsandbytes.nn import Linear8bitLt

    for module in model.modules():  # type: ignore[attr-defined]
        if isinstance(module, Linear8bitLt):
            module.register_forward_hook(lambda module, inputs, output: output.clone())


def copying(build: object) -> object:
    """`build_skeleton`, then `copied_results`."""

    def built(*args: object) -> object:
        model = build(*args)  # type: ignore[operator]
        copied_results(model)
        return model

    return built


def main() -> None:
    """Answer each question with peaks, parts and the moment, or with the error."""
    import old_stack

    from fitune.planning.predict import Card, assemble
    from fitune.planning.scenario import Scenario
    from fitune.planning.trace import dry_run
    from fitune.planning.trace_cache import cached_trace

    old_stack.adapt()
    plain = dry_run.build_skeleton
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        question = json.loads(line)
        card = Card("", question.get("usable_bytes", 2**45), tuple(question["capability"]), 0)
        try:
            scenario = Scenario.from_dict(question["scenario"])
            falcon = question["config"]["model_type"] == "falcon" and scenario.weights == "int8"
            dry_run.build_skeleton = copying(plain) if falcon else plain
            plan = assemble(cached_trace(question["config"], scenario, card.capability), card)
            answer = {
                "allocated": plan.allocated_peak_bytes, "reserved": plan.reserved_peak_bytes, "parts": plan.parts,
                "moment": plan.moment, "phases": plan.phases,
            }  # fmt: skip
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
