"""Measure on a GPU what the plan predicts: peak allocated, peak reserved, and what nvidia-smi shows for the process.

    python benchmarks/memory/measure.py --out benchmarks/memory/results/h100.jsonl

Each case runs the steps of `fitune.planning.trace.dry_run`, the same code that the plan traces, on random weights: no download.
Cases run in a few worker processes side by side, as many as the card's memory holds: each process has its own caching
allocator, and between cases its cache and cuBLAS' workspaces are emptied. One JSON object a line; a line that is there
is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from fitune.planning.scenario import Scenario  # noqa: E402

COURSE: dict[str, Any] = {"weights": "fp16", "trained_dtype": "same", "autocast": "none", "loss": "logits"}
LENGTHS = (512, 2048, 4096)


def cases() -> list[dict[str, Any]]:
    """{model, gib (a generous bound of what it needs), scenario}, the largest first."""
    found = []

    def add(model: str, gib: float, **values: Any) -> None:
        found.append({"model": model, "gib": gib, "scenario": Scenario(**values).to_dict()})

    for tuning in ("full", "lora"):
        for checkpointing in (False, True):
            for seq_len in (500, 2000):
                for attention in ("eager", "sdpa"):
                    for optimizer in ("adamw_foreach", "adamw_8bit"):
                        big = attention == "eager" and seq_len == 2000 and not checkpointing
                        add(
                            "opt-350m", 20 if big else 7, **COURSE, tuning=tuning, seq_len=seq_len, optimizer=optimizer,
                            gradient_checkpointing=checkpointing, attention=attention, lora_dropout=0.0,
                        )  # fmt: skip
                add("opt-350m", 12, tuning=tuning, seq_len=seq_len, gradient_checkpointing=checkpointing,
                    weights="fp32" if tuning == "full" else "bf16")  # fmt: skip
    for model, base, per_token in (("llama-3.2-1b", 6.0, 6.5e-3), ("llama-3.1-8b", 20.0, 12e-3)):
        for weights in ("bf16", "nf4"):
            for checkpointing in (False, True):
                for seq_len in LENGTHS:
                    for loss in ("labels", "logits"):
                        gib = base + per_token * seq_len * (0.4 if checkpointing else 1)
                        add(
                            model,
                            gib,
                            weights=weights,
                            seq_len=seq_len,
                            loss=loss,
                            gradient_checkpointing=checkpointing,
                        )
    one = "llama-3.2-1b"
    for checkpointing in (False, True):
        for seq_len in (512, 2048):
            add(one, 20, weights="int8", seq_len=seq_len, gradient_checkpointing=checkpointing)
            add(one, 36, weights="fp32", tuning="full", seq_len=seq_len, gradient_checkpointing=checkpointing)
    for optimizer in ("adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd", "adamw_loop"):
        add(one, 30, weights="fp32", tuning="full", seq_len=512, gradient_checkpointing=True, optimizer=optimizer)
    add(one, 16, batch=4, seq_len=512, rows="padded")
    for seq_len in (2048, 4096):  # one pack, as fitune trains on a GPU with Triton
        for checkpointing in (False, True):
            add(one, 6.0 + 6.5e-3 * seq_len, seq_len=seq_len, rows="packed", attention="flash_attention_2",
                gradient_checkpointing=checkpointing)  # fmt: skip
    add(one, 16, batch=4, seq_len=512, label_share=0.25)
    add(one, 16, seq_len=1024, accumulation=2, gradient_checkpointing=True)
    add(one, 12, seq_len=1024, attention="eager")
    add(one, 16, seq_len=1024, weights="nf4", kbit_preparation=True, loss="logits", gradient_checkpointing=True)
    add(one, 20, seq_len=1024, weights="fp32", autocast="none", compute="fp32")
    add(one, 12, seq_len=1024, rank=64, targets=("q_proj", "v_proj"))
    add(one, 16, seq_len=1024, gradient_checkpointing=True, eval_batch=4, generate_batch=8, prompt_tokens=512,
        new_answer_tokens=128)  # fmt: skip
    return sorted(found, key=lambda case: -case["gib"])


# For a try on a CPU, where nothing is measured.
TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def config_values(model: str) -> dict[str, Any]:
    """A model's config, by the name of its file in configs/; "tiny" is one of two small layers."""
    return TINY if model == "tiny" else json.loads((HERE / "configs" / f"{model}.json").read_text())


def measure(case: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """One case in this process; on a CPU its steps are taken, and its peaks are 0."""
    import torch

    from fitune.planning.trace.dry_run import Program
    from fitune.planning.trace_cache import as_config

    scenario = Scenario.from_dict(case["scenario"])
    config = as_config(config_values(case["model"]))
    gc.collect()
    on_card = device == "cuda"
    if on_card:
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() if on_card else 0
    phases: dict[str, dict[str, int]] = {}

    def phase(name: str, run: Any) -> None:
        if not on_card:
            return run()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        phases[name] = {
            "allocated_bytes": torch.cuda.max_memory_allocated() - before,
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }

    row = {"model": case["model"], "scenario": case["scenario"], "before_bytes": before, "phases": phases}
    started = time.time()
    program = None
    try:
        program = Program(config, scenario, device)
        phase("load", program.load)
        if on_card:
            torch.cuda.empty_cache()  # as Trainer.train does before its first step

        def step() -> None:
            for _ in range(scenario.accumulation):
                program.micro_batch()
            if scenario.optimizer_step:
                program.optimizer_step()

        for number in range(1, scenario.steps + 1):
            phase(f"step {number}", step)
        if scenario.eval_batch:
            phase("evaluation", program.evaluate)
        if scenario.generate_batch:
            phase("generation", program.generate)
        if on_card:
            row["seconds_last_step"] = timed(step)
            row["smi_bytes"], row["reserved_now_bytes"] = smi_bytes(), torch.cuda.memory_reserved()
    except torch.cuda.OutOfMemoryError as error:
        row["oom"] = str(error)[:300]
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
    program = None  # frees its tensors before the next case
    row["allocated_peak_bytes"] = max((p["allocated_bytes"] for p in phases.values()), default=0)
    row["reserved_peak_bytes"] = max((p["reserved_bytes"] for p in phases.values()), default=0)
    row["seconds"] = round(time.time() - started, 2)
    return row


def smi_bytes() -> int | None:
    """What nvidia-smi shows for this process; None where it does not know it (in a container with pids of its own)."""
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in done.stdout.splitlines():
        pid, _, used = line.partition(",")
        if pid.strip() == str(os.getpid()) and used.strip().isdigit():
            return int(used) * 2**20
    return None


def timed(step: Any) -> float:
    """Seconds of one more step. Other processes may share the card: good for memory, not for speed."""
    import torch

    torch.cuda.synchronize()
    started = time.time()
    step()
    torch.cuda.synchronize()
    return round(time.time() - started, 4)


def worker() -> None:
    """Cases as JSON lines on stdin, rows on stdout."""
    import torch

    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), file=out, flush=True)


def facts() -> dict[str, Any]:
    """The machine and the versions."""
    code = (
        "import json,torch,importlib.metadata as m;p=torch.cuda.get_device_properties(0);"
        "f,t=torch.cuda.mem_get_info();x=torch.ones(512,512,device='cuda');(x@x).sum().item();g,_=torch.cuda.mem_get_info();"
        "print(json.dumps({'gpu':p.name,'capability':[p.major,p.minor],'total_bytes':p.total_memory,"
        "'context_bytes':t-g-torch.cuda.memory_reserved(),"
        "'versions':{n:m.version(n) for n in ('torch','transformers','peft','bitsandbytes','accelerate')},"
        "'cuda':torch.version.cuda,'cudnn':torch.backends.cudnn.version()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "date": datetime.date.today().isoformat()}


def main() -> None:
    """Hand cases to workers as the card's memory allows, and write each row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--budget-gib", type=float, default=74, help="memory that the workers share")
    parser.add_argument("--limit-s", type=float, default=420, help="start no case after so many seconds")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker()
    todo = [case for case in cases() if options.only in case["model"]]
    if options.list:
        for case in todo:
            print(json.dumps(case))
        return print(len(todo), "cases")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = facts()
    done = set()
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
        done = {row["model"] + json.dumps(row["scenario"], sort_keys=True) for row in rows if "error" not in row}
    todo = [case for case in todo if case["model"] + json.dumps(case["scenario"], sort_keys=True) not in done]
    print(f"{len(todo)} cases on {known['gpu']}", flush=True)
    started, free = time.time(), [options.budget_gib]
    room = threading.Condition()

    def run(number: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        held = 1.0  # the process's context
        with room:
            free[0] -= held
        while time.time() - started < options.limit_s:
            with room:
                if not todo:
                    break
                case = next((c for c in todo if c["gib"] <= free[0]), None)
                if case is None:
                    room.wait(5)
                    continue
                todo.remove(case)
                free[0] -= case["gib"]
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            with room:
                free[0] += case["gib"]
                room.notify_all()
                if not line:
                    print(f"worker {number} died on {case}", flush=True)
                    break
                row = {**json.loads(line), **known}
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                said = row.get("error") or row.get("oom") or f"{row['allocated_peak_bytes'] / 2**30:.2f} GiB"
                print(f"{time.time() - started:5.0f} s  {case['model']}  {said}  {row['seconds']} s", flush=True)
        process.stdin.close()
        process.wait()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(options.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(todo)} cases left, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
