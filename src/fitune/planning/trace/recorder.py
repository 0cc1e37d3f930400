"""Follow every storage from its first tensor to the death of its last, with a name for what it is and when.

In: code that runs on meta tensors under `Recorder`. Out: events (storage appears, storage dies) with moments.
Knows nothing of models' kinds, scenarios or allocators. Imports only torch (2.5 to 2.15), so that it also runs in an
older environment.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.autograd.graph import Node

EMPTY_CACHE = 0
WORKSPACE = "workspace"  # the category of cuBLAS' buffers, which stay
aten = torch.ops.aten
NO_WORK = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.detach.default}
LOSS = "the loss"  # where no module runs: fitune's own loss takes the output head's weight by itself
# A trace of 80 layers has some 100,000; a state space model's plain code makes several for each token and layer.
MOST_STORAGES = 1_000_000
# Operator → place of its left factor.
MATMULS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.addmm_.default: 1,
    aten.baddbmm.default: 1,
}


def autograd_node() -> Node | None:
    """The node whose backward pass is running; None when none is."""
    return torch._C._current_autograd_node()  # pyright: ignore[reportPrivateUsage]


def storage_number(storage: torch.UntypedStorage) -> int:
    """The same for every tensor of a storage while it lives."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


class Recorder(TorchDispatchMode):
    """Records lives of storages while it is entered.

    `order`: +i+1 storage i appears, -i-1 it dies, 0 the cache is emptied. `moments[p]`: index into `moment_names` of
    event p. `sizes[i]`, `categories[i]`: bytes and category of storage i.

    Args:
        model_layers: how many layers the model has, for the names of moments.
        kernels: aten operator → function(recorder, operator, its arguments) that runs in its place, where CUDA's kernel
            takes other memory than meta's.
        device: whose tensors are followed; "cpu" follows a real run, to compare with.
    """

    def __init__(
        self, kernels: dict[OpOverload[..., object], Callable[..., object]] | None = None, device: str = "meta"
    ):
        super().__init__()
        self.device = device
        self.kernels = kernels or {}
        self.order: list[int] = []
        self.moments: list[int] = []
        self.moment_names: list[str] = []
        self.sizes: list[int] = []
        self.categories: list[str] = []
        self.phases: list[tuple[int, str]] = []
        self.vocabulary = -1
        self.phase = "load"
        self.label: str | None = None  # a category that overrides all others
        self.workspace_bytes = 0
        self._workspaces: set[bool] = set()
        self.work: dict[tuple[str, int, int], int] | None = None
        """While it is a dict: (kind, flops, moved bytes) of an operator → how often it ran. See fitune.planning.gpus.step_time."""
        self._names: dict[str, int] = {}
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._scopes: list[str] = []
        self._starts: list[int] = [0]  # sequence number of the autograd graph → module in which it was made
        self._start_scopes: list[str] = [""]
        self._paths: dict[int, str] = {}
        self._parts: dict[str, str] = {}
        self._layers = 0

    # ---- what the driver tells

    def begin(self, phase: str) -> None:
        """A new phase begins: "load", "step 1", …"""
        self.phase = phase
        self.phases.append((len(self.order), phase))

    def watch(self, model: nn.Module) -> None:
        """Learn the names of the model's modules."""
        self._paths = {id(module): name for name, module in model.named_modules()}
        numbers = [int(n) for name in self._paths.values() for n in re.findall(r"\.(\d+)(?:\.|$)", name)[:1]]
        self._layers = max(numbers, default=-1) + 1

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache was called."""
        self._event(EMPTY_CACHE)

    def mark(self, tensors: Iterable[torch.Tensor | None], category: str) -> None:
        """Name what these tensors turned out to be; also makes tensors known that appeared unseen."""
        before, self.label = self.label, category
        for tensor in tensors:
            if tensor is None or tensor.device.type != self.device:
                continue
            known = self._alive.get(storage_number(tensor.untyped_storage()))
            if known is None:
                self.see(tensor)
            else:
                self.categories[known[1]] = category
        self.label = before

    @contextmanager
    def labelled(self, category: str) -> Generator[None]:
        """Everything that appears inside is of this category."""
        before, self.label = self.label, category
        try:
            yield
        finally:
            self.label = before

    @contextmanager
    def following(self, model: nn.Module) -> Generator[None]:
        """Know in which module the code is, forward, backward and recomputing."""
        self.watch(model)
        module_hooks = nn.modules.module
        handles = [
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def repeat(self, phase: str, lasting: Iterable[str]) -> bool:
        """Write the phase that ran last down once more as ``phase``, without running it.

        What it made and what had died at its end is made and dies again. That is the same as running it only where
        nothing else of what it made is left, but for the categories ``lasting``, which are made once; else nothing is
        written and the answer is False.
        """
        start, before = self.phases[-1]
        born = {event - 1 for event in self.order[start:] if event > 0}
        dead = {-event - 1 for event in self.order[start:] if event < 0}
        if {self.categories[index] for index in born - dead} - set(lasting):
            return False
        again = born & dead
        stop, names = len(self.order), self.moment_names
        places: dict[int, int] = {}
        self.begin(phase)
        for event, moment in zip(self.order[start:stop], self.moments[start:stop], strict=True):
            if event == EMPTY_CACHE:
                self.order.append(event)
            elif (index := abs(event) - 1) not in again:
                continue
            elif event > 0:
                places[index] = len(self.sizes)
                self.sizes.append(self.sizes[index])
                self.categories.append(self.categories[index])
                self.order.append(places[index] + 1)
            else:
                self.order.append(-places[index] - 1)
            name = names[moment]
            if name.startswith(before):  # a death has the moment of what came before it, perhaps in an earlier phase
                name = phase + name.removeprefix(before)
            self.moments.append(self._number(name))
        return True

    # ---- storages

    def see(self, tensor: torch.Tensor) -> None:
        """A tensor came out of an operator."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage_number(storage)
        if key in self._alive:
            return
        index = len(self.sizes)
        if index >= MOST_STORAGES:
            raise RuntimeError(
                f"more than {MOST_STORAGES:,} tensors: code that goes token by token, too long to follow"
            )
        self.sizes.append(storage.nbytes())
        self.categories.append(self.label or self._category(tensor))
        self._alive[key] = (weakref.ref(storage, lambda _, key=key, index=index: self._died(key, index)), index)
        self._event(index + 1)

    def transient(self, *sizes: int) -> None:
        """Memory that a kernel takes and gives back while it runs."""
        first = len(self.sizes)
        for size in sizes:
            if size > 0:
                self.sizes.append(int(size))
                self.categories.append(self.label or "kernel workspace")
                self._event(len(self.sizes))
        for index in range(len(self.sizes) - 1, first - 1, -1):
            self._event(-index - 1)

    def _died(self, key: int, index: int) -> None:
        if key in self._alive and self._alive[key][1] == index:
            del self._alive[key]
            self._event(-index - 1)

    def _event(self, event: int) -> None:
        self.order.append(event)
        if event > 0 or not self.moments:
            self.moments.append(self._number(self._moment()))
        else:
            self.moments.append(self.moments[-1])

    def _number(self, name: str) -> int:
        """A moment's place in `moment_names`, a new one if need be."""
        number = self._names.get(name)
        if number is None:
            number = self._names[name] = len(self.moment_names)
            self.moment_names.append(name)
        return number

    # ---- names

    def _category(self, tensor: torch.Tensor) -> str:
        if self.phase == "load":
            return "weights"
        if self.vocabulary in tensor.shape[-1:] and tensor.is_floating_point():
            return "logits and loss"
        scope = self._scope()
        shape = tensor.shape
        if len(shape) >= 3 and shape[-1] == shape[-2] > 1 and "attention" in self._part(scope):
            return "attention"
        backward = autograd_node() is not None and not torch.is_grad_enabled()
        return "activation gradients" if backward else "activations"

    def _scope(self) -> str:
        if self._scopes:
            return self._scopes[-1]
        node = autograd_node()
        if node is None:
            return ""
        number = node._sequence_nr()  # pyright: ignore[reportPrivateUsage]
        # AccumulateGrad has the highest number of all: it stays where it was.
        if number >= 2**62:
            return self._last
        self._last = self._start_scopes[bisect_right(self._starts, number) - 1]
        return self._last

    _last = ""

    def _moment(self) -> str:
        if self.phase == "load":
            return "load"
        scope = self._scope()
        if autograd_node() is None:
            direction = "forward" if self._scopes else ""
        else:
            direction = "recomputing" if torch.is_grad_enabled() else "backward"
        if not direction:
            return f"{self.phase}, {self.label or LOSS}"
        return f"{self.phase}, {direction} of {self._part(scope)}"

    def _part(self, scope: str) -> str:
        """ "layer 3 of 24, attention" for a module's path."""
        known = self._parts.get(scope)
        if known is None:
            known = self._parts[scope] = part_name(scope, self._layers)
        return known

    def _enter_module(self, module: nn.Module, args: tuple[object, ...]) -> None:
        path = self._paths.get(id(module), self._scopes[-1] if self._scopes else "")
        self._scopes.append(path)
        self._note(path)

    def _leave_module(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if self._scopes:
            self._scopes.pop()
        self._note(self._scopes[-1] if self._scopes else LOSS)

    def _note(self, path: str) -> None:
        number = torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        if self._starts[-1] == number:
            self._start_scopes[-1] = path
        else:
            self._starts.append(number)
            self._start_scopes.append(path)

    # ---- the mode

    def _matmul(self) -> None:
        """cuBLAS' workspace appears with a thread's first product: autograd runs backward in a thread of its own."""
        backward = autograd_node() is not None
        if backward not in self._workspaces and self.workspace_bytes:
            self._workspaces.add(backward)
            self.sizes.append(self.workspace_bytes)
            self.categories.append(WORKSPACE)
            self._event(len(self.sizes))

    def _count(self, func: OpOverload[..., object], args: tuple[object, ...], out: object) -> None:
        """Note an operator's work; views and what only makes room take none."""
        if self.work is None or func.is_view or func in NO_WORK:
            return
        made = _tensors_in(out)
        read = [item for item in args if isinstance(item, torch.Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
        kind, flops = operator_work(func, args)
        key = (kind, flops, moved)
        self.work[key] = self.work.get(key, 0) + 1

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in MATMULS:
            self._matmul()
        kernel = self.kernels.get(func)
        out = kernel(self, func, *args, **kwargs) if kernel is not None else func(*args, **kwargs)
        for tensor in _tensors_in(out):
            self.see(tensor)
        self._count(func, args, out)
        return out


def _tensors_in(out: object) -> list[torch.Tensor]:
    """An operator's results, without what is no tensor."""
    items = cast("Sequence[object]", out) if isinstance(out, tuple | list) else (out,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def operator_work(func: OpOverload[..., object], args: tuple[object, ...]) -> tuple[str, int]:
    """(kind, floating point operations) of an operator; ("", 0) for what only moves bytes.

    Products: two a term. Attention by flash or efficient kernels: two products of S x S x D a head forward, five
    backward, half of it when causal (Dao, arXiv 2205.14135).
    """
    tensors = cast("tuple[torch.Tensor, ...]", args)  # where it is read from
    if func in MATMULS:
        left, right = tensors[MATMULS[func]], tensors[MATMULS[func] + 1]
        kind = "fp32" if left.dtype == torch.float32 else "matrix"
        return kind, 2 * left.numel() * right.shape[-1]
    schema = func._schema  # pyright: ignore[reportPrivateUsage]
    name = schema.name
    if "dot_product" in name and "attention" in name:
        backward = "backward" in name
        query, key = tensors[1 if backward else 0], tensors[2 if backward else 1]
        place = [argument.name for argument in schema.arguments].index("is_causal")
        causal = place < len(args) and args[place]
        whole = 2 * query.numel() * key.shape[-2] * (5 if backward else 2)
        return "attention", whole // 2 if causal else whole
    if name == "bitsandbytes::gemm_4bit":
        return "matrix", 2 * tensors[0].numel() * cast("Sequence[int]", args[2])[0]
    if name in ("bitsandbytes::int8_mixed_scaled_mm", "bitsandbytes::int8_scaled_mm"):
        left, right = (tensors[1], tensors[2]) if "mixed" in name else (tensors[0], tensors[1])
        return "int8", 2 * left.numel() * right.shape[0]
    return "", 0


def part_name(path: str, num_layers: int) -> str:
    """A module's path → what a user calls it: "layer 3 of 24, attention", "the output head", "the embedding"."""
    if path == LOSS:
        return LOSS
    found = re.search(r"\.(\d+)(?:\.|$)", path)
    rest = path[found.end() :] if found else path
    word = ""
    for pattern, name in (
        (r"attn|attention", "attention"),
        (r"norm|ln_", "norm"),
        (r"mlp|ffn|feed_forward|experts|\bfc", "feed-forward"),
        (r"lm_head|embed_out|output", "the output head"),
        (r"embed|wte|wpe", "the embedding"),
        (r"rotary", "rotary positions"),
    ):
        if re.search(pattern, rest):
            word = name
            break
    if found:
        layer = f"layer {int(found[1]) + 1} of {num_layers}"
        return f"{layer}, {word}" if word else layer
    return word or "the model"
