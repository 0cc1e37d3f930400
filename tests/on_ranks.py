"""Several ranks on this machine: each a process of its own, joined by gloo, with a hard limit of time.

`train_on(ranks, recipes)` trains every recipe one after the other in the same processes: starting them costs more than a
tiny run. Also run as a script, which is what the processes do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

SECONDS = 240


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_ranks(count: int, jobs: Sequence[dict[str, Any]]) -> list[subprocess.Popen[str]]:
    """`count` processes that train each job in order.

    A job: settings (a dict) or resume (a folder); before: code that is run first, and what it replaces.
    """
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    (folder / "jobs.json").write_text(json.dumps(list(jobs)))
    port = str(free_port())
    shared = {**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if count == 1:
        shared = dict(os.environ)
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=shared if count == 1 else {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(count)
    ]


def end(children: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each; all are killed when one is not done in time."""
    ended = []
    try:
        for child in children:
            out, err = child.communicate(timeout=seconds)
            ended.append((child.returncode, out, err))
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
    return ended


def run_on(count: int, jobs: Sequence[dict[str, Any]], seconds: float = SECONDS) -> list[list[Any]]:
    """For each rank its result of each job: folder, status, steps, or the error's text; every rank must have ended well."""
    ended = end(start_ranks(count, jobs), seconds)
    assert [status for status, _, _ in ended] == [0] * count, "\n".join(err[-3000:] for _, _, err in ended)
    return [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for _, out, _ in ended]


# What a step of AdamW makes of a difference of 1e-7 in the gradients of 1e-2.
WEIGHTS = 2e-5


def weights(run: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = [*run.path.glob("adapter/*.safetensors"), *run.path.glob("model/*.safetensors")]
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def check_equal(one: Path, other: Path, rel: float = 1e-4) -> None:
    """Two finished runs have logged and saved the same numbers, to fp32 rounding, which many steps make larger."""
    import pytest

    from fitune.runs import manifest as manifests
    from fitune.runs.run_folder import RunFolder, read_rows

    runs = RunFolder.open(one), RunFolder.open(other)
    rows = [read_rows(run.metrics) for run in runs]
    assert len(rows[0]) == len(rows[1]) and any(row["kind"] == "eval" for row in rows[0])
    for mine, theirs in zip(*rows, strict=True):
        for name in ("step", "kind", "tokens", "learning_rate", "exact_match"):
            assert mine.get(name) == theirs.get(name), name
        for name in ("loss", "grad_norm", "reward", "kl", "entropy", "accuracy", "margin"):
            if name in mine:
                wanted = pytest.approx(mine[name], rel=rel, abs=2e-6)
                assert theirs[name] == wanted, (name, mine["step"])
        assert mine.keys() == theirs.keys()
    assert [(row["step"], row["asked"], row["answer"]) for row in read_rows(runs[0].samples)] == [
        (row["step"], row["asked"], row["answer"]) for row in read_rows(runs[1].samples)
    ]
    import torch

    found, wanted = weights(runs[1]), weights(runs[0])
    assert found.keys() == wanted.keys() != set()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=WEIGHTS)
    assert manifests.read(runs[1].manifest)["status"] == "finished"


def main(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    import fitune
    from fitune.distributed import ranks, together
    from fitune.errors import FituneError, ToldByFirst

    for job in json.loads((folder / "jobs.json").read_text()):
        replaced: list[tuple[Any, str, Any]] = []

        def replace(module: Any, name: str, made_of: Any, kept: list[Any] = replaced) -> None:
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, partial(made_of, getattr(module, name)))

        exec(job.get("before", ""), {"rank": ranks.rank(), "replace": replace})
        try:
            settings = fitune.Settings(**job["settings"]) if "settings" in job else None
            result = fitune.train(settings, resume=job.get("resume", False))
            said = {"folder": str(result.folder), "status": result.status, "steps": result.steps}
        except FituneError as error:
            said = {"error": str(error), "told": not isinstance(error, ToldByFirst)}
        for module, name, value in replaced:
            setattr(module, name, value)
        print(json.dumps({**said, "rank": ranks.rank()}), flush=True)
    together.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
