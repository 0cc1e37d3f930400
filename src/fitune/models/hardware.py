"""What machine this is, and which number type suits it.

In: the device that the user asked for. Out: `Hardware` and `Precision`, each with the reason in words.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from fitune.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Linux tells what a CPU can do; on another system a CPU counts as one without bf16.
CPUINFO = Path("/proc/cpuinfo")
# A pass of one pack needs some 40 to 80 different ones.
KERNELS_KEPT = 128


@dataclass(frozen=True)
class Hardware:
    """One device to train on. `memory_bytes` is all of its memory, `free_bytes` what was free when asked."""

    device: str
    name: str
    memory_bytes: int
    free_bytes: int
    cores: int
    fast_bf16: bool
    capability: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Precision:
    """Number type of the frozen weights and of the arithmetic, and why it was chosen."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """The settings' word for it: fp32, bf16 or fp16."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def detect(device: str = "auto") -> Hardware:
    """The device to train on: what was asked for, or else a GPU if there is one.

    Raises:
        ModelError: the device asked for is not there.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if device == "cuda" and not has_cuda:
        raise ModelError("model.device is cuda and torch sees no CUDA GPU; use cpu or auto, or check the driver")
    if device == "mps" and not has_mps:
        raise ModelError("model.device is mps and torch sees no Apple GPU; use cpu or auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        capability = (properties.major, properties.minor)
        return Hardware(
            device="cuda",
            name=properties.name,
            memory_bytes=total_bytes,
            free_bytes=free_bytes,
            cores=cores,
            fast_bf16=capability >= (8, 0),
            capability=capability,
        )
    memory = psutil.virtual_memory()
    if device == "mps":
        return Hardware(
            device="mps",
            name=platform.processor() or "Apple GPU",
            memory_bytes=memory.total,
            free_bytes=memory.available,
            cores=cores,
            fast_bf16=True,
        )
    return Hardware(
        device="cpu",
        name=_cpu_name(),
        memory_bytes=memory.total,
        free_bytes=memory.available,
        cores=cores,
        fast_bf16=_cpu_has_bf16(),
    )


def gpus_in_use() -> list[int]:
    """The number of this process's GPU, in a list; none without CUDA. Asking another would take memory there."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def peak_memory_bytes(device: str) -> int:
    """Peak of memory: allocated tensors on a CUDA GPU, else the resident size of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def settle_cpu() -> None:
    """What a process that trains on a CPU sets for itself before its first product."""
    keep_few_kernels()
    keep_heap()


def keep_few_kernels() -> None:
    """On a CPU: keep the compiled kernels of the last few shapes instead of a thousand.

    oneDNN, and torch's own cache before it, keep 1,024 each by default. Packs and answers have new shapes at every step,
    so they only fill memory: 600 MB after 40 steps (docs/tried.md). Read at the first product, so to be called before it;
    a value that the user has set stays.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS_KEPT))


def keep_heap() -> None:
    """On a CPU: memory of one operation stays at hand for the next instead of going back to the system.

    glibc gives the end of its heap back above a threshold that follows the largest block freed; activations pass it all
    the time, and every page that comes back costs a fault: 16,000 to 28,000 a step of the demo, 2 % of its time
    (docs/tried.md). Blocks over 32 MiB, as ever, come from the system and go back to it. Nothing is done elsewhere than
    with glibc, or where the user has set a threshold. https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ)
    if platform.libc_ver()[0] != "glibc" or chosen:
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, bytes_ in ((-1, 512 * 2**20), (-3, 32 * 2**20)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, bytes_)


def choose_precision(requested: str, hardware: Hardware) -> Precision:
    """The type of the base weights: what was asked for, or bf16 where the hardware multiplies it fast.

    Raises:
        ModelError: fp16 on a CPU, which has no fast fp16 arithmetic and overflows above 65,504.
    """
    if requested == "fp16" and hardware.device == "cpu":
        raise ModelError("model.precision is fp16 and the device is a CPU, which trains in fp32 or bf16; use auto")
    if requested != "auto":
        return Precision(DTYPES[requested], "asked for")
    if hardware.fast_bf16:
        return Precision(torch.bfloat16, f"{hardware.name} supports bf16 natively")
    if hardware.device == "cuda":
        return Precision(torch.float16, f"{hardware.name} (before Ampere) is fast in fp16 and slow in bf16")
    return Precision(torch.float32, f"{hardware.name} has no bf16 instructions")


def _cpu_name() -> str:
    """Model name from the kernel, where it tells; the machine type elsewhere."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX-BF16, the two x86 extensions with bf16 products; Arm tells `bf16`."""
    if not CPUINFO.exists():
        return False
    flags = set(CPUINFO.read_text().split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
