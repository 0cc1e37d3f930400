"""The steps of run.sh: each a process of its own with a time limit; a step that fails is written down and passed over.

    benchmarks/gpu/run.sh --out results.jsonl

Every line of the results is one JSON object: the step, the second at which it was written, what the step printed (the
steps print JSON objects), and the card, its driver and the versions. A step that failed has a line with `failed`.
With --dry-run everything is tiny and on the CPU: it shows that the script works, and no figure means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "liger_kernel", "triton", "gguf")
WORKLOADS = ("a-short", "b-mixed", "c-fewshot", "d-full")
TAIL = 1500  # characters of a failed step's output that are written down


@dataclass(frozen=True)
class Step:
    """A process and its time limit."""

    name: str
    command: tuple[str, ...]
    seconds: float


def steps_of(dry: bool) -> list[Step]:
    """In the order of their worth, 570 s together; dry, the same programs at tiny sizes."""
    here = [sys.executable, "-W", "ignore"]
    tests = [*here, "-m", "pytest", "tests/gpu", "-v", "-rf", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore"]
    speed, memory, context = (str(HERE / f"{name}.py") for name in ("speed", "memory", "context"))
    tiny = ["--device", "cpu"]
    if dry:
        return [
            Step("tests", (*tests, "-m", "not gpu", "-k", "step_in_each_precision"), 120),
            Step("speed", (*here, speed, *tiny, "--models", "tiny", "--workloads", "automodel", "a-short",
                           "--steps", "2", "--shorten", "16"), 120),
            Step("memory", (*here, memory, *tiny), 120),
            Step("context", (*here, context, *tiny), 120),
        ]  # fmt: skip
    return [
        Step("tests", (*tests, "-m", "gpu"), 170),
        Step("speed", (*here, speed, "--models", "8b", "--workloads", "automodel", "--budget", "60"), 90),
        Step("memory", (*here, memory, "--limit-s", "100"), 130),
        Step("context", (*here, context), 90),
        Step("workloads", (*here, speed, "--models", "1b", "--budget", "80", "--workloads", *WORKLOADS), 90),
    ]


def facts() -> dict[str, Any]:
    """Card, driver and versions, read without torch."""
    versions: dict[str, str] = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        card, driver, memory = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        card, driver, memory = "none", "none", "none"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "card": card,
        "driver": driver,
        "card_memory": memory,
        "commit": commit.stdout.strip(),
        "versions": versions,
    }


def lines_of(step: Step, log: TextIO) -> Iterator[dict[str, Any]]:
    """What a step prints, line by line as it comes; at its end, if it failed, how."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        os.killpg(process.pid, signal.SIGKILL)  # a step has processes of its own

    clock = threading.Timer(step.seconds, stop)
    clock.start()
    tail = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            log.write(line)
            tail = (tail + line)[-TAIL:]
            if (found := parsed(line)) is not None:
                yield found
        code = process.wait()
    finally:
        clock.cancel()
        process.stdout.close()
    if expired.is_set():
        yield {"failed": f"stopped at its limit of {step.seconds:.0f} s", "tail": tail}
    elif code not in (0, 1 if step.name == "tests" else 0):  # pytest ends with 1 when a test failed, which has a line
        yield {"failed": f"exit status {code}", "tail": tail}


def parsed(line: str) -> dict[str, Any] | None:
    """A JSON object, or a test's verdict in pytest's own line; None for any other output."""
    if line.startswith("{"):
        try:
            return json.loads(line)
        except ValueError:
            return None
    verdict = re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", line)
    if verdict:
        return {"test": verdict[1], "outcome": verdict[2].lower()}
    reason = re.match(r"(?:FAILED|ERROR) (\S+::.+?) - (.*)", line)
    return {"test": reason[1], "outcome": "reason", "reason": reason[2]} if reason else None


def run(steps: Sequence[Step], out: Path, dry: bool) -> int:
    """Every step in turn, into ``out`` and a log beside it; returns how many failed."""
    started, known, failures = time.time(), facts(), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file, out.with_suffix(".log").open("a") as log:
        for step in steps:
            begun = time.time()
            for line in lines_of(step, log):
                row = {"step": step.name, "at_s": round(time.time() - started, 1), **line, "dry_run": dry, **known}
                file.write(json.dumps(row) + "\n")
                file.flush()
                bad = "failed" in line or "error" in line or line.get("outcome") in ("failed", "error")
                failures += bad
                said = {key: value for key, value in line.items() if key not in ("tail", "trace", "scenario", "phases")}
                print(f"{row['at_s']:6.1f} {step.name}{' ×' if bad else ''} {json.dumps(said)[:300]}", flush=True)
            print(f"{step.name} took {time.time() - begun:.1f} s", flush=True)
    print(f"{failures} failures; results in {out}", flush=True)
    return failures


def main() -> None:
    """Read the arguments and run. The exit status is 0 unless a dry run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", HERE / "results")) / "gpu.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--only", nargs="+", help="these steps")
    options = parser.parse_args()
    steps = [step for step in steps_of(options.dry_run) if options.only is None or step.name in options.only]
    failures = run(steps, options.out, options.dry_run)
    sys.exit(1 if failures and options.dry_run else 0)


if __name__ == "__main__":
    main()
