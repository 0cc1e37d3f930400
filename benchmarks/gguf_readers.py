"""GGUF exports of a run, read by two readers that are not ours: transformers and llama.cpp.

    mkdir reader && cd reader && npm install node-llama-cpp --ignore-scripts && cd ..
    python benchmarks/gguf_readers.py runs/demo --node reader

The reference are the greedy answers of the run's adapter (fp32) to 20 prompts of its held-out rows. llama.cpp answers by
itself; transformers' answers are read off one forward pass (fidelity.py says why that is the same). Each export must
give the same answers from the same token ids, and llama.cpp must split the rendered text, and the texts of HARD, into
the same ids.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from fitune.console import log, stdout_console
from fitune.evaluation.inference_model import open_target
from fitune.exporting.fidelity import Probe, compare, make_probe, same_prompts
from fitune.exporting.gguf.gguf_file import write_gguf_file
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.exporting.merge_weights import merge, settle
from fitune.exporting.probe_prompts import choose_prompts, run_of

SCRIPT = Path(__file__).with_suffix(".mjs")
# Digits, contractions, blanks and lines in a row, scripts, marks, special tokens inside a text.
HARD = (
    "In 1984, 3.14159 times 20 is 62.83!", "It's theirs; they'll don't can't I'M WE'VE", "a  b   c\n\n d\t\te \r\n f ",
    "naïve café — “quoted” … 100 % £5", "你好，世界 こんにちは 안녕 مرحبا привет", "if (x<=10){return -1;} // 0xFF_ff",
    "emoji 👩‍👩‍👧 🇦🇷 ok", "   leading and trailing   ", "user<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
)  # fmt: skip


def llama_cpp(node: Path, file: Path, texts: list[str], prompts: Any, max_new_tokens: int) -> dict[str, Any]:
    """What llama.cpp says: build, ids of the texts, greedy answers to the prompts."""
    asked = {"file": str(file), "texts": texts, "prompts": prompts, "max_new_tokens": max_new_tokens}
    done = subprocess.run(
        ["node", str(SCRIPT), str(node)], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"llama.cpp failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def same_start(one: list[int], other: tuple[int, ...]) -> int:
    """Tokens up to the first that differs."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def partings(answers: list[list[int]], probe: Probe) -> list[dict[str, Any]]:
    """Each answer that differs: where, and by how much the reference preferred its own token there, in logits.

    The median of that margin over all tokens is a few units; one below an export's "largest" difference is a tie.
    """
    found = []
    for prompt, (answer, own, logits_TV) in enumerate(zip(answers, probe.answers, probe.logits_TV, strict=True)):
        if tuple(answer) == own or (at := same_start(answer, own)) == min(len(answer), len(own)):
            continue
        margin = (logits_TV[at, own[at]] - logits_TV[at, answer[at]]).item()
        found.append({"prompt": prompt, "token": at, "margin": round(margin, 5)})
    return found


def margins(probe: Probe) -> list[float]:
    """Of every token of the reference's answers: its logit less the next best, smallest first."""
    best_two = torch.cat([logits_TV.topk(2, -1).values for logits_TV in probe.logits_TV])
    return sorted((best_two[:, 0] - best_two[:, 1]).tolist())


def main() -> None:
    """Print a table, and with --out write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--node", type=Path, required=True, help="where node-llama-cpp is installed")
    parser.add_argument("--types", default=",".join(GGUF_TYPES), help="in this order")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    target = open_target(asked.run, precision="fp32")
    run = run_of(target.adapter) if target.adapter else None
    conversations = choose_prompts(run, target.renderer, asked.prompts, None)
    probe = make_probe(target.model, target.renderer, conversations, asked.max_new_tokens)
    margin = margins(probe)
    texts = [target.renderer.text_of(messages, generation_prompt=True) for messages in conversations]
    hard = [target.renderer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in HARD]
    merged = merge(target)
    settle(merged.model)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.types.split(","):
            file = write_gguf_file(merged, Path(folder), "run", kind)
            log(f"{kind}: llama.cpp")
            cpp = llama_cpp(asked.node, file, [*texts, *HARD], probe.prompts, asked.max_new_tokens)
            log(f"{kind}: transformers")
            copy = open_target(str(file), precision="fp32")
            fidelity = compare(probe, copy.model, kind, GGUF_TYPES[kind].loss)
            pairs = list(zip(cpp["answers"], probe.answers, strict=True))
            rows.append(
                {
                    "type": kind,
                    "bytes": file.stat().st_size,
                    "build": cpp["build"],
                    "prompt_ids_transformers": same_prompts(probe, copy.renderer.tokenizer)[0],
                    "prompt_ids_llama_cpp": sum(a == list(b) for a, b in zip(cpp["ids"], probe.prompts, strict=False)),
                    "hard_ids_llama_cpp": sum(a == b for a, b in zip(cpp["ids"][len(texts) :], hard, strict=True)),
                    "answers_transformers": round(fidelity.answers_same * len(conversations)),
                    "answers_llama_cpp": sum(tuple(a) == b for a, b in pairs),
                    "same_start_llama_cpp": sum(same_start(a, b) for a, b in pairs),
                    "parted_llama_cpp": partings(cpp["answers"], probe),
                    "smallest_margins": [round(one, 5) for one in margin[:5]],
                    "median_margin": round(margin[len(margin) // 2], 3),
                    "tokens": len(margin),
                    "fidelity": vars(fidelity),
                }
            )
            log(json.dumps(rows[-1]))
            if asked.out:
                asked.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            del copy
            file.unlink()
    prompts = len(conversations)
    for row in rows:
        stdout_console().print(
            f"| {row['type']} | {row['bytes'] / 1e6:.0f} MB | {row['answers_transformers']} / {prompts} "
            f"| {row['answers_llama_cpp']} / {prompts} | {row['fidelity']['divergence']:.2g} "
            f"| {row['prompt_ids_transformers']}, {row['prompt_ids_llama_cpp']} / {prompts} "
            f"| {row['hard_ids_llama_cpp']} / {len(HARD)} |"
        )


if __name__ == "__main__":
    main()
