"""Out of memory never ends a run: the pass is taken again in smaller pieces, with the same rows an optimizer step.

In: `FituneTrainer` or `PackedTrainer`, whose methods are wrapped. Out: the same trainers, which go on.
Knows nothing of settings or of how a pass is computed.

A step that ran out of memory is begun again: its gradients are dropped, and all of its micro-batches are taken anew, so
the step is the one that would have been taken. The loss is divided by the trained tokens of the whole step, so smaller
pieces give the same sum. When one row at a time is still too much, gradient checkpointing is switched on. Only when
that does not help either the run ends, with its checkpoints and a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fitune.console import log, warn
from fitune.data.packing.bins import pack_rows
from fitune.data.packing.tree import Tree
from fitune.errors import DoesNotFit
from fitune.ops.label_loss import count_trained
from fitune.trainers.base import FituneTrainer, with_row_numbers
from fitune.trainers.callbacks import TrainerListener
from fitune.trainers.memory import free_memory, is_out_of_memory
from fitune.trainers.packed import PACKS, PackedTrainer
from fitune.trainers.worst_case_batch import Batches, largest_micro_batch, largest_pack

# Bytes that an optimizer keeps for each trained value from the first step on; paged ones move to the host when needed.
STATE_BYTES = {"adamw_torch_fused": 8.0, "adamw_bnb_8bit": 2.05}


class _Surviving:
    """The methods of a trainer that may run out of memory, each with another attempt."""

    packing: Any = None
    on_step_down: Callable[[dict[str, Any]], None] | None = None
    longest: Callable[[], Any] | None = None
    """Rows of the largest padded pass of the run, or its largest pack, as what `training_step` takes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        me = self._me()
        self.pieces = 1
        self.pack_tokens = self.packing.max_tokens if self.packing is not None else 0
        self.step_batches: list[Any] = []
        self.step_position = 0
        self.rows_by_number: dict[int, Any] = {}
        self.checkpoints_activations = bool(
            getattr(me.args, "activation_checkpointing", None) or getattr(me.args, "gradient_checkpointing", None)
        )

    @property
    def layout(self) -> str:
        """tree, rows or off: how the rows of a step are laid out."""
        return "off" if self.packing is None else self.packing.mode

    # ---- a step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        parent = self._me(super())
        batches, trained = parent.get_batch_samples(*args, **kwargs)
        self.step_batches, self.step_position = batches, 0
        return batches, trained

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch, in as many pieces as memory asks for."""
        position, self.step_position = self.step_position, self.step_position + 1
        loss = self._attempt(model, inputs, num_items_in_batch)
        while loss is None:
            self._step_down(f"at step {self._me().state.global_step + 1}", inputs)
            self._drop_gradients()
            for earlier in [*self.step_batches[:position], inputs]:
                loss = self._attempt(model, earlier, num_items_in_batch)
                if loss is None:
                    break
        return loss

    def _attempt(self, model: Any, inputs: dict[str, Any], num_items: Any) -> Tensor | None:
        """The loss, or None when memory ran out; gradients are then whatever had been added by that time."""
        me, parent = self._me(), self._me(super())
        try:
            losses = [parent.training_step(model, part, num_items) for part in self._parts(inputs)]
            return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error) or me.args.world_size > 1:
                raise  # processes that train together must take the same passes
        # Out of the handler: its traceback has let go of the activations.
        free_memory()
        return None

    def _parts(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The inputs, cut into what is taken at once."""
        if PACKS in inputs:
            if any(tree.num_nodes > self.pack_tokens and len(tree.row_numbers) > 1 for tree in inputs[PACKS]):
                inputs = {PACKS: [part for tree in inputs[PACKS] for part in self._repacked(tree)]}
            yield inputs
            return
        # A method whose inputs are laid out otherwise cannot be cut here; checkpointing is what is left for it.
        count = len(inputs["input_ids"]) if "input_ids" in inputs else 1
        size = -(-count // self.pieces)
        if size >= count:
            yield inputs
            return
        for start in range(0, count, size):
            yield {name: value[start : start + size] for name, value in inputs.items()}

    def _repacked(self, tree: Tree) -> list[Tree]:
        me = self._me()
        if not self.rows_by_number:
            self.rows_by_number = {row.row_number: row for row in me.train_dataset.rows}
        rows = [self.rows_by_number[number] for number in tree.row_numbers]
        return pack_rows(rows, self.pack_tokens, self.packing.mode == "tree")

    def _drop_gradients(self) -> None:
        me = self._me()
        me.model.zero_grad(set_to_none=True)
        me.step_loss = 0.0

    # ---- smaller

    def _step_down(self, where: str, inputs: dict[str, Any]) -> None:
        """Take less at once from now on.

        Args:
            inputs: what was too much.

        Raises:
            DoesNotFit: there is nothing left to give up.
        """
        me = self._me()
        if PACKS in inputs:
            longest = max(len(row.input_ids) for row in me.train_dataset.rows)
            largest = min(self.pack_tokens, max(tree.num_nodes for tree in inputs[PACKS]))
            smaller = largest > longest
            self.pack_tokens = max(largest // 2, longest)
            what = f"packs of at most {self.pack_tokens:,} tokens"
        else:
            rows = len(inputs.get("input_ids", ()))
            smaller = self.pieces < rows
            self.pieces *= 2
            size = -(-rows // self.pieces)
            what = f"micro-batches of {size} {'row' if size == 1 else 'rows'}"
        if not smaller:
            what = self._checkpoint_activations(where)
        warn(f"out of memory {where}: from here on {what}; the rows of a step and its result are the same")
        if self.on_step_down is not None:
            self.on_step_down({"at": where, "to": what})

    def _checkpoint_activations(self, where: str) -> str:
        me = self._me()
        model = me.accelerator.unwrap_model(me.model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if self.checkpoints_activations or not getattr(inner, "supports_gradient_checkpointing", True):
            raise DoesNotFit(
                f"out of memory {where}, with one row at a time and gradient checkpointing: the longest row has "
                f"{max(len(row.input_ids) for row in me.train_dataset.rows):,} tokens. Leave the longest rows out "
                "(data.max_length with data.too_long drop), quantize the base (model.quantization nf4), or take a "
                "smaller model; `fitune plan` tells what would fit"
            )
        inner.activation_checkpointing_enable({"use_reentrant": False})
        self.checkpoints_activations = True
        return "gradient checkpointing, about a third more time"

    # ---- before the first step

    def try_longest(self) -> None:
        """Forward and backward of the largest pass, beside as much memory as the optimizer's states will take.

        Gradients are dropped, random numbers put back: the training that follows is the one without it.
        """
        me = self._me()
        if self.longest is None:
            return
        inputs = self.longest()
        before = me.last_row_numbers, me.step_loss
        position = self.step_batches, self.step_position
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), self._states_held():
            self.step_batches, self.step_position = [], 0
            while self._attempt(me.model_wrapped, inputs, _targets_of(inputs)) is None:
                self._drop_gradients()
                self._step_down("in the trial before step 1", inputs)
        self._drop_gradients()
        me.last_row_numbers, me.step_loss = before
        self.step_batches, self.step_position = position
        free_memory()
        log(f"tried before step 1: the largest pass of the run ({_size_of(inputs)})")

    @contextmanager
    def _states_held(self) -> Iterator[None]:
        """Memory that the first optimizer step will take for good, taken meanwhile."""
        me = self._me()
        values = sum(value.numel() for _, value in me.trained_parameters())
        each = STATE_BYTES.get(str(getattr(me.args.optim, "value", me.args.optim)), 0.0)
        held = None
        if not me.optimizer.state:  # a resumed run has them already
            try:
                held = torch.empty(int(values * each), dtype=torch.uint8, device=me.args.device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise DoesNotFit(
                    f"the optimizer's states take {int(values * each) / 2**30:.2f} GiB for {values:,} trained values, "
                    "which are not there; use train.optimizer adamw_8bit, or train.tuning lora"
                ) from error
        yield
        del held

    # ---- evaluation

    def _token_loss(self, eval_dataset: Any) -> float:
        """As of the trainer, in smaller batches when memory runs out."""
        parent = self._me(super())
        while True:
            try:
                return parent._token_loss(eval_dataset)
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self._smaller_evaluation():
                    raise
            free_memory()

    def _smaller_evaluation(self) -> bool:
        me = self._me()
        if self.packing is not None:
            most, longest = self.packing.max_tokens, max(len(row.input_ids) for row in me.eval_dataset.rows)
            size, smaller = max(most // 2, longest), most > longest
            self.packing = replace(self.packing, max_tokens=size)
            what = f"packs of at most {size:,} tokens"
        else:
            rows = me.args.per_device_eval_batch_size
            me.args.per_device_eval_batch_size = max(rows // 2, 1)
            what, smaller = f"{max(rows // 2, 1)} rows", rows > 1
        if smaller:
            warn(f"out of memory in the evaluation: it goes on with {what} at a time; its result is the same")
        return smaller

    def _me(self, what: Any = None) -> Any:
        """This object, or ``what``, without a type: what it is mixed into is not known here."""
        return self if what is None else what


class SurvivingTrainer(_Surviving, FituneTrainer):
    """`FituneTrainer` that goes on when memory runs out."""


class SurvivingPackedTrainer(_Surviving, PackedTrainer):
    """`PackedTrainer` that goes on when memory runs out."""


class TriedFirst(TrainerListener):
    """The largest pass of the run before its first step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.try_longest()


def largest_inputs(rows: Sequence[Any], batches: Batches, collate: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What `training_step` takes, for the largest pass of the run."""
    if batches.mode != "off":
        return {PACKS: [largest_pack(rows, batches)]}
    return with_row_numbers(collate)(largest_micro_batch(rows, batches))


def _targets_of(inputs: dict[str, Any]) -> int:
    if PACKS in inputs:
        return max(sum(tree.num_targets for tree in inputs[PACKS]), 1)
    return max(count_trained(inputs["labels"]), 1)


def _size_of(inputs: dict[str, Any]) -> str:
    if PACKS in inputs:
        return f"{max(tree.num_nodes for tree in inputs[PACKS]):,} tokens in a pack"
    rows, tokens = inputs["input_ids"].shape
    return f"{rows} rows of {tokens:,} tokens"
