"""Faults by the hundred on tiny runs: after each nothing is lost, and every run ends with the weights of an undisturbed one.

    python benchmarks/soak.py                  # writes docs/reliability.md and docs/interrupted.svg
    python benchmarks/soak.py --rounds 1       # some forty faults, prints the table

Needs Linux and the right to mount a tmpfs in a namespace of its own (`unshare`), for disks that are full or read-only.
Each attempt is the command line of fitune in a process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1"
)
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
PAGE, PICTURE = ROOT / "docs" / "reliability.md", ROOT / "docs" / "interrupted.svg"
DISK_BYTES, STEPS, CURVE_STEPS, CURVE_FAULTS, MOST_ATTEMPTS = 160 * 2**20, 24, 120, 50, 14
EXACT = ("step", "kind", "loss", "learning_rate", "grad_norm", "epoch", "tokens", "reward", "accuracy")
MS_RDONLY, MS_REMOUNT = 1, 32


@dataclass
class Job:
    """A command that is to be disturbed: how it starts, how it goes on, where its result lies."""

    name: str
    start: list[str]
    go_on: list[str]
    folder: Path
    results: list[Path]
    steps: int


@dataclass
class Tally:
    """What was done and what became of it."""

    faults: Counter[str] = field(default_factory=Counter)
    ends: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    runs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    smaller_passes: int = 0


class Soak:
    """The disk, the cache, the model and the rows that all runs share."""

    def __init__(self, root: Path, seed: int):
        self.random = random.Random(seed)
        self.disk, self.cache, self.log = root / "disk", root / "cache", root / "said.txt"
        self.fill = self.disk / "ballast"
        for folder in (self.disk, self.cache):
            folder.mkdir()
        mount("tmpfs", self.disk, f"size={DISK_BYTES}")
        os.environ["FITUNE_CACHE"] = str(self.cache)
        self.inputs = root
        write_inputs(root)
        self.tally = Tally()

    def jobs(self, round_number: int) -> list[Job]:
        """One of each kind, in folders of their own."""
        made = []
        for name in ("sft", "dpo", "grpo"):
            folder = self.disk / f"{name}-{round_number}"
            start = [
                "train",
                str(self.inputs / f"{name}.yaml"),
                "--run.folder",
                str(self.disk),
                "--run.name",
                folder.name,
            ]
            result = [folder / "adapter" / "adapter_model.safetensors"]
            made.append(Job(name, start, ["train", "--resume", str(folder)], folder, result, STEPS))
        folder = self.disk / f"chain-{round_number}"
        start = ["train", str(self.inputs / "chain.yaml"), "--run.folder", str(self.disk), "--run.name", folder.name]
        results = [folder / stage / "adapter" / "adapter_model.safetensors" for stage in ("first", "second")]
        made.append(Job("chain", start, ["train", "--resume", str(folder)], folder, results, STEPS))
        out = self.disk / f"merged-{round_number}"
        words = ["export", str(self.disk / f"sft-{round_number}"), "--to", "merged", "--out", str(out)]
        made.append(Job("export", words, words, out, [out / "model.safetensors"], 0))
        return made

    # ---- attempts

    def begin(self, words: list[str], before: Callable[[], None] | None = None) -> int:
        """A process that runs the command; its words go to `log`."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid:
            os.close(told)
            os.read(ready, 1)  # from here on signals are fitune's
            os.close(ready)
            return pid
        status = 99
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if before is not None:
                before()
            sys.argv = ["fitune", *words]
            from fitune import cli

            work = cli.cli.main

            def begun(**options: Any) -> Any:
                os.write(told, b"!")
                return work(**options)

            cli.cli.main = begun  # type: ignore[method-assign]
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def waited(self, pid: int, seconds: float = 300) -> int:
        """The exit status, negative for a signal; a process that hangs is a fault of fitune."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.tally.wrong.append(f"a process hung for {seconds} s: {self.said()[-300:]}")
        return -9

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ---- one disturbed run

    def disturb(self, job: Job, reference: dict[str, Any]) -> None:
        """Faults until the run is finished; then it is compared with the undisturbed one."""
        words, attempts = job.start, 0
        while True:
            lethal = self.random.choice(LETHAL) if attempts < MOST_ATTEMPTS else None
            newest = newest_steps(job)
            code = self.attempt(job, words, lethal, reference["seconds"])
            attempts += 1
            self.check_attempt(job, lethal, code, newest)
            if code == 0:
                break
            if job.name == "export" or begun(job):
                words = job.go_on
                self.damage(job)
        self.compare(job, reference)

    def attempt(self, job: Job, words: list[str], lethal: str | None, seconds: float) -> int:
        """One process, one lethal fault, now and then a harmless one before it."""
        gentle = self.random.choice(GENTLE) if self.random.random() < 0.5 else None
        before = {"clock set back a day": clock_back, "slow disk": slow_disk}.get(gentle or "")
        if before is not None:
            self.tally.faults[gentle or ""] += 1
        pid = self.begin(words, before)
        self.wait_a_while(job, pid, seconds)
        if gentle == "cache deleted" and alive(pid):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.count(gentle, "no effect")
        if gentle == "second process on the same run" and alive(pid) and begun(job) and job.steps:
            self.second(job)
        if lethal is None or not alive(pid):
            return self.waited(pid)
        self.tally.faults[lethal] += 1
        return FAULTS[lethal](self, pid)

    def wait_a_while(self, job: Job, pid: int, seconds: float) -> None:
        """Some steps further than the run is now, or in an export any time of it; then a moment more."""
        if not job.steps:
            pause(pid, self.random.uniform(0.1, 1.0) * seconds)
            return
        goal = logged(job) + self.random.choice((0, 1, 1, 2, 3, 5, 8))
        end = time.monotonic() + 120
        while alive(pid) and logged(job) < goal and time.monotonic() < end:
            time.sleep(0.005)
        pause(pid, self.random.uniform(0, 0.3))

    def second(self, job: Job) -> None:
        """Another process wants the run that is being written."""
        log, self.log = self.log, self.log.with_name("second.txt")
        code, said = self.waited(self.begin(job.go_on)), self.said()
        self.log = log
        refused = code == 1 and "is being written by process" in said
        self.count("second process on the same run", "refused" if refused else f"exit {code}")
        if not refused and "finished" not in said:
            self.tally.wrong.append(f"{job.name}: a second process was not refused: {code}, {said[-300:]}")

    def damage(self, job: Job) -> None:
        """Sometimes a file of the newest checkpoint is cut short, changed by a bit or removed."""
        from fitune.runs.checkpoints import MARK, complete_checkpoints

        found = [folder for run in runs_of(job) for folder in complete_checkpoints(run / "checkpoints")[1:]][-1:]
        if not found or self.random.random() < 0.6:
            return
        files = [path for path in sorted(found[0].iterdir()) if path.name != MARK and path.stat().st_size]
        file = self.random.choice(files)
        how = self.random.choice(("truncated", "one bit changed", "file missing"))
        self.count("damaged checkpoint", how)
        raw = bytearray(file.read_bytes())
        if how == "file missing":
            file.unlink()
        elif how == "truncated":
            file.write_bytes(raw[: self.random.randrange(len(raw))])
        else:
            raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
            file.write_bytes(raw)

    def count(self, fault: str, end: str) -> None:
        self.tally.faults[fault] += 1
        self.tally.ends[fault][end] += 1

    # ---- what must hold

    def check_attempt(self, job: Job, lethal: str | None, code: int, newest: list[int]) -> None:
        """The exit status is the documented one, no traceback, no checkpoint lost, the list tells the truth."""
        said = self.said()
        expected = {0, *(EXPECTED[lethal] if lethal else ())}
        if lethal is not None:
            self.tally.ends[lethal]["finished before it" if code == 0 else f"exit {code}"] += 1
        if "Invalid thread pool" in said:
            return  # PyTorch's threads do not survive the fork that this script saves its imports by
        if code not in expected or "Traceback" in said or "Fatal Python error" in said:
            self.tally.wrong.append(f"{job.name}, {lethal}: exit {code}: {said[-600:]}")
        for before, now in zip(newest, newest_steps(job), strict=False):
            if now < before:
                self.tally.wrong.append(f"{job.name}, {lethal}: checkpoint {before} is gone, the newest is {now}")
        from fitune.runs.run_folder import RunFolder

        for path in runs_of(job):
            status = RunFolder(path).status()
            if status == "running":
                self.tally.wrong.append(f"{job.name}, {lethal}: {path.name} is listed as running")

    def compare(self, job: Job, reference: dict[str, Any]) -> None:
        """Weights, logged numbers and files of the undisturbed run."""
        self.tally.runs[job.name] += 1
        ours = result_of(job)
        if any("step_downs" in (path / "manifest.json").read_text() for path in runs_of(job)):
            self.tally.smaller_passes += 1
        for what in ("weights", "numbers", "files"):
            if ours[what] != reference[what]:
                parts = (
                    (sorted(set(map(str, ours[what])) ^ set(map(str, reference[what])))) if what != "weights" else []
                )
                self.tally.wrong.append(f"{job.name}: {what} differ from those of the undisturbed run {parts[:6]}")

    # ---- the curve

    def curve(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]], list[int], float]:
        """A run that is interrupted fifty times, and one that is not."""
        curves, seconds = [], 0.0
        for name in ("whole", "interrupted"):
            job = self.long_job(name)
            words, left, places = job.start, CURVE_FAULTS if name == "interrupted" else 0, []
            began = time.monotonic()
            while True:
                pid = self.begin(words)
                if left:
                    goal = logged(job) + self.random.choice((1, 2, 3))
                    while alive(pid) and logged(job) < goal:
                        time.sleep(0.003)
                    pause(pid, self.random.uniform(0, 0.05))
                if left and alive(pid):
                    fault = self.random.choice(("kill -9", "SIGTERM", "SIGINT twice"))
                    self.tally.faults[fault] += 1
                    places.append(logged(job))
                    code, left = FAULTS[fault](self, pid), left - 1
                    self.check_attempt(job, fault, code, [])
                else:
                    code = self.waited(pid)
                    if code:
                        self.tally.wrong.append(f"curve, {name}: exit {code}: {self.said()[-300:]}")
                if code == 0:
                    break
                words = job.go_on if begun(job) else job.start
            curves.append((losses(job), result_of(job), places))
            seconds = max(seconds, time.monotonic() - began)
        (whole, wanted, _), (cut, got, places) = curves
        self.tally.runs["the curve"] += 1
        for what in ("weights", "numbers", "files"):
            if wanted[what] != got[what]:
                self.tally.wrong.append(f"curve: {what} differ")
        return whole, cut, places, seconds

    def long_job(self, name: str) -> Job:
        folder = self.disk / f"curve-{name}"
        start = ["train", str(self.inputs / "sft.yaml"), "--run.folder", str(self.disk), "--run.name", folder.name]
        more = ["--train.max_steps", str(CURVE_STEPS), "--run.checkpoint_steps", "1", "--eval.every_steps", "60"]
        result = [folder / "adapter" / "adapter_model.safetensors"]
        return Job("curve", [*start, *more], ["train", "--resume", str(folder)], folder, result, CURVE_STEPS)


# ---- faults: each ends the process, and gives its exit status


def killed(soak: Soak, pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return soak.waited(pid)


def terminated(soak: Soak, pid: int) -> int:
    os.kill(pid, signal.SIGTERM)
    return soak.waited(pid)


def interrupted_twice(soak: Soak, pid: int) -> int:
    os.kill(pid, signal.SIGINT)
    pause(pid, soak.random.uniform(0, 0.05))
    if alive(pid):
        os.kill(pid, signal.SIGINT)
    return soak.waited(pid)


def disk_full(soak: Soak, pid: int) -> int:
    """Filled to the last byte, or up to a rest in which some rows fit and a checkpoint does not."""
    return _full(soak, pid, 0)


def disk_full_in_a_file(soak: Soak, pid: int) -> int:
    return _full(soak, pid, soak.random.randrange(8, 200) * 1024)


def _full(soak: Soak, pid: int, rest: int) -> int:
    handle = os.open(soak.fill, os.O_WRONLY | os.O_CREAT)
    try:
        while alive(pid):
            free = shutil.disk_usage(soak.disk).free - rest
            if free >= 4096:
                size = os.fstat(handle).st_size
                try:
                    os.posix_fallocate(handle, size, free // 4096 * 4096)
                except OSError:
                    continue
            elif rest == 0 or free > -rest:
                break
        return soak.waited(pid)
    finally:
        os.close(handle)
        soak.fill.unlink()


def read_only(soak: Soak, pid: int) -> int:
    while alive(pid) and not remount(soak.disk, MS_RDONLY):
        time.sleep(0.001)  # a file is open for writing at this moment
    try:
        return soak.waited(pid)
    finally:
        remount(soak.disk, 0)


def memory_limit(soak: Soak, pid: int) -> int:
    """No more address space than the process has now, and a little."""
    try:
        now = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (now + soak.random.randrange(0, 2**20), resource.RLIM_INFINITY))
    except (OSError, ValueError, ProcessLookupError):
        pass
    return soak.waited(pid)


FAULTS: dict[str, Callable[[Soak, int], int]] = {
    "kill -9": killed,
    "SIGTERM": terminated,
    "SIGINT twice": interrupted_twice,
    "disk full": disk_full,
    "disk full in the middle of a file": disk_full_in_a_file,
    "disk read-only": read_only,
    "memory limit": memory_limit,
}
LETHAL = tuple(FAULTS)
GENTLE = ("cache deleted", "second process on the same run", "clock set back a day", "slow disk")
# Exit statuses that docs/reliability.md promises; 0: it was finished before the fault, or got over it.
EXPECTED = {
    "kill -9": {-9},
    "SIGTERM": {143},
    "SIGINT twice": {130},
    "disk full": {1},
    "disk full in the middle of a file": {1},
    "disk read-only": {1},
    "memory limit": {1, -6, -9, -11},  # the C++ library under it may abort
}


def clock_back() -> None:
    real, begun_at = time.time, time.time()
    time.time = lambda: real() - (86_400 if real() - begun_at > 0.5 else 0)  # type: ignore[assignment]


def slow_disk() -> None:
    flush = os.fsync
    os.fsync = lambda handle: (time.sleep(0.05), flush(handle))[1]  # type: ignore[assignment]


# ---- looking at runs


def runs_of(job: Job) -> list[Path]:
    places = [job.folder, *(job.folder / stage for stage in ("first", "second"))]
    return [path for path in places if (path / "manifest.json").exists()] if job.steps else []


def begun(job: Job) -> bool:
    return (job.folder / "manifest.json").exists() or (job.folder / "chain.json").exists()


def logged(job: Job) -> int:
    from fitune.runs.run_folder import read_rows

    return sum(row.get("kind") == "train" for run in runs_of(job) for row in read_rows(run / "metrics.jsonl"))


def losses(job: Job) -> list[tuple[int, float]]:
    from fitune.runs.run_folder import read_rows

    return [(row["step"], row["loss"]) for row in read_rows(job.folder / "metrics.jsonl") if row["kind"] == "train"]


def newest_steps(job: Job) -> list[int]:
    from fitune.runs.checkpoints import complete_checkpoints, damaged_file, step_of

    found = []
    for run in runs_of(job):
        whole = [one for one in complete_checkpoints(run / "checkpoints") if damaged_file(one) is None]
        found.append(step_of(whole[-1]) if whole else 0)
    return found


def result_of(job: Job) -> dict[str, Any]:
    """Hashes of the weights, logged numbers, names of the files."""
    from fitune.runs.run_folder import read_rows

    rows = [row for run in runs_of(job) for row in read_rows(run / "metrics.jsonl")]
    files = [path.relative_to(job.folder).as_posix() for path in job.folder.glob("**/*") if path.is_file()]
    beside = [path.name for path in job.folder.parent.glob(f".{job.folder.name}*")]
    return {
        "weights": [sha256(path.read_bytes()).hexdigest() for path in job.results],
        "numbers": [tuple((name, row[name]) for name in EXACT if name in row) for row in rows],
        "files": [name for name in sorted([*files, *beside]) if "checkpoint-" not in name],
    }


def alive(pid: int) -> bool:
    """Whether the child has not ended; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def pause(pid: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.002)


# ---- mounts and inputs

LIBC = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, at: Path, options: str) -> None:
    if LIBC.mount(kind.encode(), str(at).encode(), kind.encode(), 0, options.encode()) != 0:
        raise SystemExit(f"a tmpfs cannot be mounted: {os.strerror(ctypes.get_errno())}")


def remount(at: Path, flags: int) -> bool:
    return LIBC.mount(None, str(at).encode(), None, MS_REMOUNT | flags, f"size={DISK_BYTES}".encode()) == 0


def write_inputs(root: Path) -> None:
    """A random Llama of one layer, rows for each method, and the recipes."""
    from conftest import make_model_folder

    model = make_model_folder(root / "model", "llama", num_hidden_layers=1)
    words = ("cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee")
    rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    pairs = [{"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] + "x"} for word in words]
    prompts = [{"prompt": f"say {word}", "completion": word} for word in words]
    for name, found in (("sft", rows), ("dpo", pairs), ("grpo", prompts)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    common = {
        "fit": "off",
        "model": {"name": str(model), "precision": "fp32", "device": "cpu"},
        "lora": {"rank": 4, "dropout": 0.1},
        "train": {"batch_size": 2, "learning_rate": 1e-2, "max_steps": STEPS},
        "eval": {"samples": 1, "max_new_tokens": 4, "every_steps": 10},
        "run": {"checkpoint_steps": 2, "log_steps": 1},
    }
    rl = {"rewards": ["length:2", "0.5*exact"], "max_new_tokens": 4, "num_generations": 2, "truncated_reward": None}
    more = {"grpo": {"rl": rl, "lora": {"rank": 4}}}
    for name in ("sft", "dpo", "grpo"):
        data = {"data": {"train": str(root / f"{name}.jsonl"), "eval_share": 0.2}}
        write_yaml(root / f"{name}.yaml", {**common, "method": name, **data, **more.get(name, {})})
    stages = [
        {"name": "first", "method": "sft", "data": {"train": str(root / "sft.jsonl"), "eval_share": 0.2}},
        {"name": "second", "method": "dpo", "data": {"train": str(root / "dpo.jsonl"), "eval_share": 0.2}},
    ]
    half = {"train": {**common["train"], "max_steps": STEPS // 2}}
    write_yaml(root / "chain.yaml", {**common, **half, "stages": stages})


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(values, sort_keys=False))


# ---- the page


def picture(whole: list[tuple[int, float]], cut: list[tuple[int, float]], places: list[int]) -> str:
    """Both curves over another; a mark below for each interruption."""
    width, height, left, bottom = 760, 300, 50, 40
    top = max(loss for _, loss in whole)
    low = min(loss for _, loss in whole)

    def at(step: float, loss: float) -> str:
        x = left + (step - 1) / (CURVE_STEPS - 1) * (width - left - 15)
        return f"{x:.1f},{15 + (top - loss) / (top - low) * (height - bottom - 25):.1f}"

    def line(points: list[tuple[int, float]], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(at(*point) for point in points)}"/>'

    wide, thin = 'stroke="#93c5fd" stroke-width="6"', 'stroke="#1e3a8a" stroke-width="1.5"'
    base = height - bottom
    marks = "".join(
        f'<line x1="{at(step, low).split(",")[0]}" x2="{at(step, low).split(",")[0]}" y1="{base}" y2="{base + 8}" '
        'stroke="#b91c1c"/>'
        for step in places
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f"{line(whole, wide)}{line(cut, thin)}{marks}"
        f'<text x="{left - 6}" y="20" text-anchor="end">{top:.2f}</text>'
        f'<text x="{left - 6}" y="{base}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{left}" y="{height - 8}">step 1</text>'
        f'<text x="{width - 15}" y="{height - 8}" text-anchor="end">step {CURVE_STEPS}</text>'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">wide: not interrupted; thin: interrupted '
        f"{len(places)} times, at the red marks</text>"
        f'<text x="{left + 10}" y="20">training loss</text></svg>\n'
    )


def table(tally: Tally) -> str:
    lines = ["| fault | times | what became of it |", "|---|---|---|"]
    for name, count in sorted(tally.faults.items(), key=lambda item: -item[1]):
        ends = ", ".join(f"{end}: {number}" for end, number in tally.ends[name].most_common()) or "went on"
        lines.append(f"| {name} | {count} | {ends} |")
    return "\n".join(lines)


def page(tally: Tally, seed: int, seconds: float, equal: bool) -> str:
    total, kinds = sum(tally.faults.values()), len(tally.faults)
    runs = ", ".join(f"{name} {count}" for name, count in tally.runs.items())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    found = tally.wrong and "\n".join(f"- {one}" for one in tally.wrong)
    curves = "equal at every step" if equal else "NOT equal"
    text = f"""<!-- soak: written by benchmarks/soak.py -->

## The soak

`python benchmarks/soak.py --seed {seed}`, {date.today()}, {seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores shared with
other work, Python {platform.python_version()}, {versions}. Runs of a random one-layer Llama of {STEPS} steps (fp32, CPU) on a
tmpfs of {DISK_BYTES // 2**20} MiB.

**{total} faults of {kinds} kinds over {sum(tally.runs.values())} runs** ({runs}). After each: the exit status as documented, no
traceback, no complete checkpoint lost, no run listed as running. At the end of each run: weights equal to the undisturbed
run's to the last bit, logged numbers equal, no file more or less.

{table(tally)}

What did not hold: {found or "nothing."}

A run of {CURVE_STEPS} steps, interrupted {CURVE_FAULTS} times by `kill -9`, SIGTERM or two SIGINT, over one that was not: the two
curves are {curves}.

![Training loss of both runs](interrupted.svg)
"""
    return PAGE.read_text().partition("<!-- soak")[0] + text


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=0, help="rounds of five runs; 0: until 200 faults, and the page")
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    if os.environ.get("FITUNE_SOAK") != "inside":
        os.environ["FITUNE_SOAK"] = "inside"
        user = [] if os.geteuid() == 0 else ["-r"]
        os.execvp("unshare", ["unshare", "-m", *user, sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as root:
        run(Path(root), asked.rounds, asked.seed)


def run(root: Path, rounds: int, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    from fitune.methods.registry import METHODS

    for method in ("sft", "dpo", "grpo"):
        METHODS[method].runtime()
    began, soak = time.monotonic(), Soak(root, seed)
    references = {}
    for job in soak.jobs(0):
        start = time.monotonic()
        code = soak.waited(soak.begin(job.start))
        if code:
            raise SystemExit(f"the undisturbed {job.name} ended with {code}: {soak.said()[-2000:]}")
        references[job.name] = {**result_of(job), "seconds": time.monotonic() - start}
        print(f"{job.name}: {references[job.name]['seconds']:.1f} s undisturbed", flush=True)
    done = 0
    whole: list[tuple[int, float]] = []
    cut: list[tuple[int, float]] = []
    places: list[int] = []
    if not rounds:
        whole, cut, places, _ = soak.curve()
        print(f"curve: {len(places)} interruptions, wrong: {soak.tally.wrong}", flush=True)
    while done < rounds or (not rounds and sum(soak.tally.faults.values()) < 200):
        done += 1
        for job in soak.jobs(done):
            soak.disturb(job, references[job.name])
            faults = sum(soak.tally.faults.values())
            wrong = soak.tally.wrong
            print(f"round {done}, {job.name}: {faults} faults, {len(wrong)} wrong {wrong[-1:]}", flush=True)
        for job in soak.jobs(done):
            shutil.rmtree(job.folder, ignore_errors=True)
    print(table(soak.tally))
    print(f"runs in smaller passes: {soak.tally.smaller_passes}")
    print("\n".join(soak.tally.wrong) or "nothing wrong")
    if not rounds:
        PICTURE.write_text(picture(whole, cut, places))
        PAGE.write_text(page(soak.tally, seed, time.monotonic() - began, whole == cut))
    sys.exit(1 if soak.tally.wrong else 0)


if __name__ == "__main__":
    main()
