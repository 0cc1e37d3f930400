"""Training speed on one GPU: fitune's packs against TRL's SFTTrainer, random weights in the shapes of real models.

    python benchmarks/gpu/speed.py --out speed.json --models 1b 8b --budget 220

Nothing is downloaded: the weights are random (speed and memory do not depend on their values), the rows are random
tokens with the lengths and the shared prefixes of each workload. Every entry is tried on its own; one that fails is
written down with its error. Useful tokens: each row's tokens, counted once for each row. MFU counts the matrix products
of the useful tokens of a LoRA step (forward and input gradients, 4 · parameters a token, and the head where a token is
trained) against `--peak-tflops`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 512, True),  # for a try on a CPU
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "8b": (4096, 14336, 32, 32, 8, 128_256, False),
}
# rows a step, shared prefix, own tokens from, to; share of the own tokens that is trained
WORKLOADS = {
    "a-short": (64, 24, 30, 60, 0.6),
    "c-fewshot": (16, 600, 30, 60, 0.6),
    "b-mixed": (16, 0, 50, 1000, 0.6),
    "d-full": (8, 0, 1024, 1024, 1.0),
    # NeMo AutoModel's published cell: LoRA of rank 16 in bf16, 12,473 tokens/s on one H100.
    "automodel": (2, 0, 4096, 4096, 1.0),
}


@dataclass(frozen=True)
class Row:
    """What fitune's packer reads."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    row_number: int


def make_rows(workload: str, steps: int, vocabulary: int, seed: int = 0, shorten: int = 1) -> list[list[Row]]:
    """Rows of each step, ``shorten`` times shorter than the workload's."""
    count, shared, low, high, share = WORKLOADS[workload]
    shared, low, high = shared // shorten, max(low // shorten, 4), max(high // shorten, 4)
    draw = torch.Generator().manual_seed(seed)
    prefix = torch.randint(0, vocabulary, (shared,), generator=draw).tolist()
    batches = []
    for _ in range(steps):
        rows = []
        for number in range(count):
            own = int(torch.randint(low, high + 1, (1,), generator=draw))
            ids = prefix + torch.randint(0, vocabulary, (own,), generator=draw).tolist()
            rows.append(Row(tuple(ids), tuple(i >= shared + own * (1 - share) for i in range(len(ids))), number))
        batches.append(rows)
    return batches


def make_model(shape: str, device: str):
    """A Llama of that shape in bf16 with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv_heads, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=8192,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def lora(model, dropout: float = 0.0):
    """The same adapter for both: rank 16 on all linear layers."""
    from fitune.adapters.inject import attach, lora_config

    return attach(model.requires_grad_(False), lora_config(model, dropout=dropout))


def time_fitune(model, batches, attention: str, device: str) -> dict:
    """Steps of packs; the first two warm up."""
    from fitune.data.packing.bins import pack_rows
    from fitune.ops import tree_attention
    from fitune.ops.packed_loss import pack_loss, to_pack

    model.train()
    base = model.get_base_model()
    before = tree_attention.use_tree_attention(base)
    flex, tree_attention.flex_available = tree_attention.flex_available, lambda: attention == "flex"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=device == "cuda")
    times, losses, computed = [], [], 0
    try:
        for rows in batches:
            start = now(device)
            packs = pack_rows(rows, 16_384)
            items = sum(tree.num_targets for tree in packs)
            loss = 0.0
            for tree in packs:
                with torch.autocast(device, torch.bfloat16):
                    value = pack_loss(model, to_pack(tree, device), items)
                value.backward()
                loss += float(value)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            times.append(now(device) - start)
            losses.append(loss)
            computed += sum(tree.num_nodes for tree in packs)
    finally:
        tree_attention.flex_available = flex
        base.set_attn_implementation(before)
    return {"seconds": times, "losses": losses, "computed_tokens": computed}


def time_trl(model, batches, liger: bool, device: str) -> dict:
    """TRL's SFTTrainer on the same rows in the same order: model in bf16, bf16=True, no checkpointing."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.marks: list[float] = []

        def on_step_begin(self, *_, **__):
            self.marks.append(now(device))

        def on_step_end(self, *_, **__):
            self.marks.append(now(device))

    words = {"<pad>": 0, "</s>": 1, "w": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w")), pad_token="<pad>", eos_token="</s>"
    )
    rows = [row for batch in batches for row in batch]
    labels = [[t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)] for row in rows]
    dataset = Dataset.from_dict({"input_ids": [list(row.input_ids) for row in rows], "labels": labels})
    options = {
        "per_device_train_batch_size": len(batches[0]), "num_train_epochs": 1, "learning_rate": 1e-4,
        "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "bf16": True, "use_cpu": device == "cpu",
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_length": None,
        "train_sampling_strategy": "sequential", "activation_checkpointing": False, "use_liger_kernel": liger,
    }  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(output_dir=folder, **options)
        trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": [b - a for a, b in zip(clock.marks[::2], clock.marks[1::2], strict=False)], "losses": losses}


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def entry(kind: str, shape: str, workload: str, steps: int, device: str, peak_tflops: float, shorten: int = 1) -> dict:
    """One method on one workload, from a fresh model; a kind that ends in -dropout has a LoRA dropout of 0.05."""
    hidden, inner, layers, heads, kv_heads, vocabulary, _ = SHAPES[shape]
    batches = make_rows(workload, steps, vocabulary, shorten=shorten)
    torch.manual_seed(0)
    model = lora(make_model(shape, device), 0.05 if kind.endswith("-dropout") else 0.0)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    if kind.startswith("fitune"):
        result = time_fitune(model, batches, kind.split("-")[1], device)
    else:
        result = time_trl(model, batches, "liger" in kind, device)
    warm = min(2, steps - 1)
    tokens = [sum(len(row.input_ids) for row in rows) for rows in batches]
    trained = [sum(sum(row.trained[1:]) for row in rows) for rows in batches]
    per_layer = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads + 3 * hidden * inner
    flops = [4 * (t * per_layer * layers + n * hidden * vocabulary) for t, n in zip(tokens, trained, strict=True)]
    rates = [t / s for t, s in zip(tokens[warm:], result["seconds"][warm:], strict=True)]
    mfu = [f / s / peak_tflops / 1e12 for f, s in zip(flops[warm:], result["seconds"][warm:], strict=True)]
    return {
        "kind": kind, "model": shape, "workload": workload, "useful_tokens_per_second": round(median(rates), 1),
        "mfu_useful": round(median(mfu), 4), "wall_s": round(time.perf_counter() - start, 1),
        "useful_tokens": sum(tokens), "computed_tokens": result.get("computed_tokens"),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "seconds": [round(value, 4) for value in result["seconds"]],
        "losses": [round(value, 4) for value in result["losses"]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write everything to this file")
    parser.add_argument("--models", nargs="+", default=["1b", "8b"], choices=SHAPES)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--budget", type=float, default=220, help="seconds after which no entry is begun")
    parser.add_argument("--peak-tflops", type=float, default=989, help="dense bf16; H100 SXM: 989")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shorten", type=int, default=1, help="rows so many times shorter, for a try")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    begun = time.perf_counter()
    kinds = ["fitune-groups", "fitune-flex", "trl"]
    if importlib.util.find_spec("liger_kernel"):
        kinds.append("trl-liger")
    if args.device != "cuda":
        kinds = ["fitune-groups", "trl"]
    ours = "fitune-flex" if "fitune-flex" in kinds else "fitune-groups"
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    results = []
    for shape in args.models:
        for workload in args.workloads:
            with_dropout = [f"{kind}-dropout" for kind in (ours, kinds[-1])]
            for kind in [*kinds, *with_dropout] if workload == "automodel" else kinds:
                if time.perf_counter() - begun > args.budget:
                    results.append({"kind": kind, "model": shape, "workload": workload, "error": "budget spent"})
                    continue
                try:
                    made = entry(kind, shape, workload, args.steps, args.device, args.peak_tflops, args.shorten)
                except Exception as error:
                    made = {
                        "kind": kind, "model": shape, "workload": workload, "error": repr(error)[:500],
                        "trace": traceback.format_exc()[-1500:],
                    }  # fmt: skip
                results.append(made)
                print(json.dumps({k: v for k, v in made.items() if k != "trace"}), flush=True)
                gc.collect()
                if args.device == "cuda":
                    torch.cuda.empty_cache()
                facts = {"device": name, "torch": torch.__version__, "peak_tflops": args.peak_tflops}
                if args.out:
                    args.out.write_text(json.dumps({**facts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
