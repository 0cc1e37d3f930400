"""`fitune train --gpus 2`: this command once more on each GPU, by torchrun's agent.

In: how many, the words of the command. Out: an exit status. A rank that dies ends the others, and is named.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from fitune.errors import SettingsError

# Ranks that wait for one that has died do not hear SIGTERM; they are killed after this many seconds. A run that is ended by
# a signal has as long to finish its step and write its checkpoint. torch's own variable.
SHUTDOWN_SECONDS = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "50")


def count_of(asked: str, on_cpu: bool) -> int:
    """How many processes ``--gpus`` asks for.

    Args:
        asked: a number, or all.
        on_cpu: the run trains on the CPU, whose ranks share its cores.

    Raises:
        SettingsError: it is no number, or there are fewer GPUs.
    """
    import torch

    there = torch.cuda.device_count()
    if asked == "all" and not on_cpu:
        return max(there, 1)
    if not asked.isdigit() or int(asked) == 0:
        raise SettingsError([f'--gpus is "{asked}"; use a number from 1, or all'])
    if int(asked) > there and not on_cpu:
        found = {0: "no GPU", 1: "1 GPU"}.get(there, f"{there} GPUs")
        raise SettingsError(
            [f"--gpus is {asked}, and torch sees {found} on this machine; several machines: docs/scale.md"]
        )
    return int(asked)


def launch(count: int, command: Sequence[str]) -> tuple[int, str | None]:
    """Run ``fitune COMMAND`` in ``count`` processes that find each other.

    Returns:
        The exit status, and a sentence where a process did not end by itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault(*SHUTDOWN_SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    logging.disable(logging.ERROR)  # the agent's own words about a rank that failed: ours follow
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"fitune-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fitune.cli", *command)
    except SignalException as error:
        return 128 + int(error.sigval), None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode, None  # it has told why itself
        name = signal.Signals(-failure.exitcode).name
        killed = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return 1, (
            f"rank {rank} (process {failure.pid}) was ended by {name}{killed}; the others were ended with it. "
            "`fitune train --resume RUN` goes on from the last complete checkpoint"
        )
    finally:
        logging.disable(logging.NOTSET)
    return 0, None
