"""Prove that a refactoring changed nothing: the same command lines, asked of the tree before it and of this one.

    python benchmarks/refactor/same.py --before efed3fe
    python benchmarks/refactor/same.py --before efed3fe --only "plan *" --only "train dpo*"

Each tree runs as `python -m fitune.cli` in processes of its own (PYTHONPATH is its src; nothing of fitune is imported
here, for any module may have moved), with one thread, offline, in a folder and with a FITUNE_CACHE of its own. cases.py
has the command lines, inputs.py makes the tiny models that they read. Compared to the bit are:

- what `--json` prints, and the exit status;
- every file that a run or an export leaves: .json and .jsonl by their values (losses, all metrics, answers), all others
  by SHA-256 (safetensors, GGUF, Modelfile, tokenizer);
- for "resume": metrics, samples and weights of a run that the earlier tree began, that was interrupted after a
  checkpoint, and that this tree resumed, with those of the same run uninterrupted in the earlier tree.

Left out are NOT_COMPARED and NOT_FILES, each for its reason. What was renamed on purpose stands in RENAMED.
Since efed3fe rows end at their last trained token (the line break behind an end token is no longer computed), so sums are
added in another order: with --close, ON_PURPOSE is left out too, numbers may part by CLOSE of their size and weights by
CLOSE_WEIGHTS, and each case says how far its numbers part.
Exit status: 0 all is equal; 1 something differs, or could not be compared; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

# Set for this process too: torch and the hub client read them when inputs.py imports them.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONHASHSEED": "0",
}  # fmt: skip
os.environ.update(ENVIRONMENT)

from cases import CASES, NEEDS, RESUMES  # noqa: E402
from inputs import CONFIGS, make_inputs  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# The earlier tree's word → this tree's: keys and whole texts of what is printed and of files, and names of files.
RENAMED = {"test": "eval", "test_rows": "eval_rows", "test_report": "eval_report"}
# Fields of files, at any depth.
NOT_COMPARED = {
    **dict.fromkeys(("seconds", "tokens_per_second", "started", "ended", "resumed"), "time"),
    **dict.fromkeys(("memory_bytes", "measured", "comparison", "asked_smi_peak_bytes"), "this process's own size"),
    "hardware": "has the memory that is free", "versions": "of packages, and fitune's own",
    "command": "may name renamed flags", "warnings": "prose; what they count is compared",
}  # fmt: skip
NOT_FILES = {
    "README.md": "prose and times", "report.html": "prose and times", "settings.yaml": "names of settings",
    "chain.json": "names of settings", "checkpoints": "holds pickles; `resume` proves that they are read",
}  # fmt: skip
ON_PURPOSE = {
    **dict.fromkeys(("tokens", "computed_tokens", "shortest", "median", "longest"), "rows end at the last trained token"),
    "rows_whose_prompt_differs_in_chat": "gone: it is no longer possible",
    **dict.fromkeys(("thinking", "tool_calls", "left_out", "columns_unused", "roles", "encoding"), "counted since"),
    "steps_without_signal": "counted since", "chat.json": "written since", "special_tokens_in_text": "counted since",
    "notes": "prose", "hint": "prose", "bytes": "chat.json lies in the folder", "smi_parts": "of shorter rows",
    "fitune.json": "has facts of today's",
}  # fmt: skip
CLOSE, CLOSE_WEIGHTS = 1e-5, 1e-4
ANSWERS = (0, 3)  # exit statuses; 3 is `fitune plan`: does not fit
LIMIT_SECONDS = 600


class NotComparable(Exception):
    """A case that shows nothing, with the reason."""


@dataclass(frozen=True)
class Side:
    """A tree and the folder in which it works; `done` holds what ran: words → (status, stdout, end of stderr)."""

    src: Path
    folder: Path
    old_recipes: Path
    done: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)

    def words(self, case: str) -> list[str]:
        places = {"recipes": self.src.parent / "recipes", "old_recipes": self.old_recipes, "configs": CONFIGS}
        return shlex.split(CASES[case].format(inputs=self.folder.parent / "inputs", **places))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        self.folder.mkdir(exist_ok=True)
        own = {"PYTHONPATH": str(self.src), "FITUNE_CACHE": str(self.folder / "cache")}
        pipe, environment = subprocess.PIPE, {**os.environ, **own}
        return subprocess.Popen([sys.executable, *words], cwd=self.folder, env=environment, stdout=pipe, stderr=pipe)

    def run(self, words: list[str]) -> tuple[int, bytes, str]:
        """Run `fitune WORDS` to its end, once."""
        key = shlex.join(words)
        if key not in self.done:
            with self.start("-m", "fitune.cli", *words) as process:
                try:
                    printed, told = process.communicate(timeout=LIMIT_SECONDS)
                finally:
                    process.kill()
            self.done[key] = process.returncode, printed, told.decode().strip().rpartition("\n")[2]
        return self.done[key]

    def check(self) -> None:
        """Leave unless this tree is what Python imports: fitune may be installed besides."""
        found = self.start("-c", "import fitune; print(fitune.__file__)").communicate()[0].decode().strip()
        if not Path(found).is_relative_to(self.src):
            raise SystemExit(f"fitune is imported from {found or 'nowhere'}, not from {self.src}")

    def neutral(self, contents: bytes) -> bytes:
        """Without the folder's own name, in as many bytes: GGUF files count theirs."""
        return contents.replace(str(self.folder).encode(), b"#" * len(str(self.folder)))


# ---- what a case leaves


@dataclass(frozen=True)
class Weights:
    """A safetensors file, equal to another by its hash."""

    path: Path
    digest: str

    def __repr__(self) -> str:
        return self.digest

    def parted(self, other: Weights) -> float:
        """The largest difference of two tensors of one name; infinite where names or shapes differ."""
        from safetensors.torch import load_file

        one, two = load_file(self.path), load_file(other.path)
        if one.keys() != two.keys() or any(one[name].shape != two[name].shape for name in one):
            return float("inf")
        return max(float((one[name].float() - two[name].float()).abs().max()) for name in one if one[name].numel())


def outcome(side: Side, case: str) -> dict[str, Any]:
    """printed (parsed) and files of a case; what it needs is run before. Or its error."""
    if case in NEEDS:
        outcome(side, NEEDS[case])
    words = side.words(case)
    status, printed, told = side.run(words)
    if status not in ANSWERS:
        return {"error": f"status {status}: {told}"}
    found = {"status": status, "printed": json.loads(side.neutral(printed))}
    return {**found, **files(side, folder)} if (folder := folder_of(words)) else found


def folder_of(words: list[str]) -> str | None:
    """What the words name: runs/NAME of a run, the folder of an export."""
    named = dict(pairwise(words))
    return f"runs/{named['--run.name']}" if "--run.name" in named else named.get("--out")


def files(side: Side, folder: str) -> dict[str, Any]:
    """Path below the folder → its JSON without NOT_COMPARED, or its SHA-256."""
    top, found = side.folder / folder, {}
    # Logs first: a difference in a loss says more than one in a hash.
    for path in sorted((one for one in top.rglob("*") if one.is_file()), key=lambda one: (one.suffix != ".jsonl", one)):
        name, contents = path.relative_to(top), side.neutral(path.read_bytes())
        if NOT_FILES.keys() & {*name.parts}:
            continue
        if path.suffix == ".safetensors":
            found[str(name)] = Weights(path, hashlib.sha256(contents).hexdigest())
            continue
        lines = {".jsonl": contents.splitlines(), ".json": [contents]}.get(path.suffix)
        parsed = [tidy(json.loads(line), {}, NOT_COMPARED) for line in lines or ()]
        found[str(name)] = parsed if lines else hashlib.sha256(contents).hexdigest()
    if not found:
        raise NotComparable(f"{top} holds nothing to compare")
    return found


def tidy(value: Any, words: dict[str, str], without: Collection[str] = ()) -> Any:
    """A value with keys and whole texts in other words, and without some keys, at any depth."""
    if isinstance(value, dict):
        return {words.get(key, key): tidy(one, words, without) for key, one in value.items() if key not in without}
    if isinstance(value, list):
        return [tidy(one, words, without) for one in value]
    return words.get(value, value) if isinstance(value, str) else value


def resumed(before: Side, after: Side, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Logs and weights of the run that went through in the earlier tree, and of the one that the other tree resumed."""
    words, (name, checkpoint) = before.words(case), RESUMES[case]
    folder = folder_of(words) or ""
    cut = Side(after.src, before.folder.with_name("cut"), before.old_recipes)
    with Side(before.src, cut.folder, before.old_recipes).start("-m", "fitune.cli", *words) as process:
        try:
            until = time.monotonic() + LIMIT_SECONDS
            while not (cut.folder / folder / checkpoint / "complete.json").exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise NotComparable(f"the run ended before it wrote {checkpoint}")
                time.sleep(0.005)
            process.send_signal(signal.Signals[name])
            process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.kill()
    if process.returncode != (130 if name == "SIGINT" else -signal.Signals[name]):
        raise NotComparable(f"the run ended with status {process.returncode} before {name} reached it")
    for side, asked in ((before, words), (cut, ["train", "--resume", folder, "--json"])):
        status, _, told = side.run(asked)
        if status:
            raise NotComparable(f"fitune {' '.join(asked[:3])} in {side.src}: status {status}: {told}")
    both = files(before, folder), files(cut, folder)
    ends = ("metrics.jsonl", "samples.jsonl", ".safetensors")  # not manifests: they tell of the resume
    first, second = ({name: one[name] for name in one if name.endswith(ends)} for one in both)
    return first, second


# ---- comparing


@dataclass
class Comparison:
    """Two outcomes side by side. `close` lets numbers part a little; `farthest` is by how much they did."""

    close: bool = False
    farthest: float = 0.0

    def first_difference(self, before: Any, after: Any, place: str = "") -> str | None:
        """Where they part, with both values; None when they are equal to the bit (1 is not 1.0, NaN is NaN) or close."""
        if isinstance(before, list) and isinstance(after, list):
            before, after = dict(enumerate(before)), dict(enumerate(after))
        if not (isinstance(before, dict) and isinstance(after, dict)):
            same = repr(before) == repr(after) or (self.close and self._is_close(before, after))
            return None if same else f"{place[1:]}: {before!r} before, {after!r} after"
        for key in dict.fromkeys([*before, *after]):
            if self.close and str(key).rpartition("/")[2] in ON_PURPOSE:
                continue
            if key not in before or key not in after:
                return f"{place[1:]} {key}: only {'after' if key in after else 'before'}"
            if found := self.first_difference(before[key], after[key], f"{place} {key}"):
                return found
        return None

    def _is_close(self, before: Any, after: Any) -> bool:
        if isinstance(before, Weights) and isinstance(after, Weights):
            parted, limit = before.parted(after), CLOSE_WEIGHTS
        elif isinstance(before, float) and isinstance(after, float):
            parted, limit = abs(before - after) / max(abs(before), abs(after), 1e-3), CLOSE
        else:
            return False
        self.farthest = max(self.farthest, parted)
        return parted <= limit


def compare(before: Side, after: Side, case: str, close: bool) -> tuple[str | None, float]:
    """The first difference of a case, or None, and how far numbers part. The two trees run side by side."""
    if case in RESUMES:
        first, second = resumed(before, after, case)
    else:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda side: outcome(side, case), (before, after))
    if "error" in first:
        raise NotComparable(f"the earlier tree fails too: {first['error']}")
    if "error" in second:
        return f"only this tree fails: {second['error']}", 0.0
    comparison = Comparison(close)
    return comparison.first_difference(tidy(first, RENAMED), second), comparison.farthest


def judge(before: Side, after: Side, chosen: list[str], as_json: bool, close: bool) -> int:
    """Compare the cases, a line each; the exit status."""
    make_inputs(before.folder.parent / "inputs")
    before.check()
    after.check()
    rows = []
    for case in chosen:
        try:
            detail, farthest = compare(before, after, case, close)
            verdict = "different" if detail else "close" if farthest else "equal"
            detail = f"{farthest:.1e}" if verdict == "close" else detail
        except (NotComparable, ValueError, subprocess.TimeoutExpired) as error:
            verdict, detail = "not compared", str(error)
        rows.append({"case": case, "verdict": verdict, "detail": detail})
        if not as_json:
            print(f"{verdict:12}  {case}{f': {detail}' if detail else ''}", flush=True)
    same = sum(row["verdict"] in ("equal", "close") for row in rows)
    said = "equal or close" if close else "equal"
    print(json.dumps(rows, indent=2) if as_json else f"{same} of {len(rows)} cases are {said}")
    return 0 if same == len(rows) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    earlier = parser.add_mutually_exclusive_group(required=True)
    earlier.add_argument("--before", metavar="COMMIT", help="the earlier tree")
    earlier.add_argument("--before-src", type=Path, metavar="SRC", help="or its src; recipes/ stands beside it")
    parser.add_argument("--after-src", type=Path, metavar="SRC", default=ROOT / "src", help="default: this tree's")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="cases with such names; * stands for any text"
    )
    parser.add_argument("--close", action="store_true", help="leave out what was changed on purpose; numbers may round")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of lines")
    parser.add_argument("--keep", action="store_true", help="keep the folder of all runs, and say where it is")
    given = parser.parse_args()
    chosen = [case for case in CASES if any(fnmatch(case, pattern) for pattern in given.only or ["*"])]
    if not chosen:
        parser.error(f"no case matches; there are: {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree goes away then too
    scratch = Path(tempfile.mkdtemp(prefix="fitune-same-"))
    worktree = ["git", "-C", str(ROOT), "worktree"]
    src = given.before_src or scratch / "tree" / "src"
    try:
        if given.before:
            subprocess.run([*worktree, "add", "--detach", "--quiet", str(src.parent), given.before], check=True)
        sides = [(src, "old"), (given.after_src, "new")]  # names of one length: Side.neutral
        before, after = (Side(one.resolve(), scratch / name, src.resolve().parent / "recipes") for one, name in sides)
        return judge(before, after, chosen, given.json, given.close)
    finally:
        if given.before and src.exists():
            subprocess.run([*worktree, "remove", "--force", str(src.parent)], check=True)
        if given.keep:
            print(f"kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
