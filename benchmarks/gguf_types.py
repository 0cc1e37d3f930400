"""Types of GGUF, with and without an importance matrix, against the model in fp32: all answers are llama.cpp's.

    python benchmarks/gguf_types.py smollm2-135m-instruct --calibration data.jsonl     # a run, an adapter or a model
    python benchmarks/gguf_types.py runs/demo --calibration run --types q4_k_m,q3_k_m

The reference are greedy answers of the model (fp32, transformers) to --prompts prompts. --calibration takes llama-imatrix
and llama-quantize, on the PATH or in LLAMA_CPP; without it each type is written once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from fitune.console import log, stdout_console
from fitune.evaluation.inference_model import open_target
from fitune.exporting.calibration import read_calibration
from fitune.exporting.fidelity import compare_logits, make_probe
from fitune.exporting.gguf.gguf_file import write_gguf_file
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.exporting.gguf.llama_cpp import ask
from fitune.exporting.merge_weights import merge, settle
from fitune.exporting.probe_prompts import choose_prompts, run_of


def main() -> None:
    """Print a table, and with --out write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--types", default="f16,q8_0,q6_k,q5_k_m,q4_k_m,q3_k_m")
    parser.add_argument("--calibration", help="run, or a data file")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    target = open_target(asked.target, precision="fp32")
    run = run_of(target.adapter) if target.adapter else None
    text = read_calibration(asked.calibration, run, target.renderer) if asked.calibration else None
    probe = make_probe(target.model, target.renderer, choose_prompts(run, target.renderer, asked.prompts, None))
    merged = merge(target)
    settle(merged.plain_model)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in asked.types.split(","):
            for importance in (None, text) if text and GGUF_TYPES[kind].packed else (None,):
                file = write_gguf_file(merged, Path(scratch), "model", kind, importance)
                said = ask(file, probe.prompts, probe.answers)
                row = compare_logits(probe, said.logits_TV, kind, GGUF_TYPES[kind].loss)
                size = file.stat().st_size
                rows.append({"matrix": importance is not None, "bytes": size, "reader": said.reader, **vars(row)})
                log(json.dumps(rows[-1]))
                file.unlink()
    for row in rows:
        stdout_console().print(
            f"| {row['copy']} | {'yes' if row['matrix'] else 'no'} | {row['bytes'] / 1e6:.1f} MB | {row['divergence']:.2g} "
            f"| {row['tokens_same']:.1%} | {row['answers_same']:.0%} |"
        )
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
