"""`FituneTrainer`: transformers' Trainer with our loss, our row order, our evaluation and our checkpoints.

In: a model ready to train, token rows, plain values. Out: steps, logged through callbacks, and whole checkpoints.
Knows nothing of settings, templates or reports.

What differs from transformers.Trainer:
- the loss is per trained token of the whole optimizer step (loss.py), so accumulation changes nothing;
- evaluation keeps no logits and weighs every token alike;
- a checkpoint holds the trained parameters alone, and counts only once its completion mark is written;
- of several ranks each takes its part of a step's rows, and gradients are summed once, behind the last pass (parallel/);
- out of memory, a step or an evaluation is begun again in smaller passes (oom_recovery.py).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypedDict, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from fitune.console import follow
from fitune.data.packing.dealing import deal
from fitune.distributed import ranks, together
from fitune.errors import RunError, TrainingHalted
from fitune.models.base_model import base_model_of
from fitune.models.hardware import gpus_in_use
from fitune.models.length_rules import by_side, forget_length, length_rule
from fitune.ops.label_loss import Chunking, count_trained, label_loss
from fitune.runs import checkpoints
from fitune.trainers.callbacks import StopOnInterrupt, TrainerListener
from fitune.trainers.listeners.row_noise import RowNoise, padded_rows
from fitune.trainers.oom_recovery import OomRecovery, PassSize, StepDown, TriedFirst
from fitune.trainers.parallel.dealt_batch import AT, OWN, ROWS, SIZE, DealtCollate, dealt
from fitune.trainers.parallel.rank_step import StepReport, share_step
from fitune.trainers.parallel.sharding import (
    OPTIMIZER_FOLDER,
    broadcast_whole,
    is_sharded,
    load_optimizer,
    local,
    put,
    save_optimizer,
    whole,
)
from fitune.trainers.sampler import Numbered, Row, ShuffledByEpoch

if TYPE_CHECKING:
    from transformers import DataCollator

TRAINED_FILE = "trained.safetensors"
ROW_NUMBERS = "row_numbers"

Batch = Mapping[str, object]
"""What a collator makes of rows: tensors (`Padded`), or what a subclass lays out itself."""
Padded = Mapping[str, Tensor]
Collate = Callable[[Sequence[Row]], Batch]
Examine = Callable[[nn.Module, int], dict[str, float]]


class TrainerOptions(TypedDict, total=False):
    """What every `FituneTrainer` may be given, as its constructor says."""

    extra_metrics: Examine | None
    keep_checkpoints: int
    callbacks: list[TrainerCallback] | None
    on_step_down: StepDown | None
    largest_rows: Callable[[], Sequence[Numbered]] | None


class RowDataset(Dataset[Row], Generic[Row]):
    """Token rows by index."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def with_row_numbers(collate: Collate[Row]) -> Collate[Row]:
    """The batch that ``collate`` makes, with the rows' numbers beside it so that an error can name them."""

    def collate_numbered(rows: Sequence[Row]) -> Batch:
        return {**collate(rows), ROW_NUMBERS: torch.tensor([row.row_number for row in rows])}

    return collate_numbered


class FituneTrainer(Trainer):
    """Trainer over token rows.

    Args:
        model: the model with its trained parameters marked by ``requires_grad``.
        args: from `fitune.trainers.arguments`.
        train_rows, eval_rows: `fitune.data` token rows.
        collate: rows → input_ids BS, attention_mask BS, labels BS.
        extra_metrics: called at each evaluation with the model and the step; returns more metrics (generation).
        keep_checkpoints: whole checkpoints kept, the best one always among them.
        callbacks: more callbacks of transformers; each `TrainerListener` among them is bound to this trainer.
        pass_size: what a forward pass takes at first; None takes a micro-batch of rows.
        on_step_down: told when memory ran out and passes got smaller (oom_recovery.py).
        largest_rows: makes the rows of the run's largest pass, to be tried before step one.
    """

    # compute_loss divides by the trained tokens of the whole optimizer step itself.
    loss_is_scaled_for_ga = True
    model: nn.Module  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[Row],
        eval_rows: Sequence[Row],
        collate: Collate[Row],
        extra_metrics: Examine | None = None,
        keep_checkpoints: int = 2,
        callbacks: list[TrainerCallback] | None = None,
        pass_size: PassSize | None = None,
        on_step_down: StepDown | None = None,
        largest_rows: Callable[[], Sequence[Numbered]] | None = None,
    ):
        self.sharded = is_sharded(model)
        self.order = ShuffledByEpoch(train_rows, args.seed)
        self.extra_metrics = extra_metrics
        self.keep_checkpoints = keep_checkpoints
        self.step_batches: list[Batch] = []
        self.step_loss = 0.0
        self.step_tokens = 0
        # What a method measures in a step beside the loss; logged as its mean over the steps of a row.
        self.step_metrics: dict[str, float] = {}
        self.last_row_numbers: list[int] = []
        self.extra_state: dict[str, Any] = {}
        for callback in callbacks or ():
            if isinstance(callback, TrainerListener):
                callback.bind(self)
        super().__init__(
            model=model,
            args=args,
            data_collator=cast("DataCollator", with_row_numbers(collate)),
            train_dataset=RowDataset(train_rows),
            eval_dataset=RowDataset(eval_rows) if eval_rows else None,
            callbacks=[_EpochOrder(self), *(callbacks or [])],
        )
        self.lengths = length_rule(base_model_of(model).config)
        # Ours knows the rows; transformers' own is not switched on.
        self.neftune_noise_alpha = None
        self.noise = RowNoise(args.neftune_noise_alpha) if args.neftune_noise_alpha else None
        if self.noise is not None:
            self.noise.bind(self)
            self.add_callback(self.noise)
        self.micro_rows: int | None = args.per_device_train_batch_size
        size = pass_size or PassSize(args.per_device_train_batch_size)
        if ranks.size() > 1:
            self.take_whole_steps()
        self.recovery = OomRecovery(
            size,
            where=lambda: f"at step {self.state.global_step + 1}",
            model=model,
            checkpointing=bool(
                getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", None)
            ),
            begin_again=self.drop_gradients,
            gives_up=self.sharded,
            on_step_down=on_step_down,
        )
        self.eval_recovery = OomRecovery(
            size, where=lambda: f"in the evaluation at step {self.state.global_step}", on_step_down=on_step_down
        )
        if largest_rows is not None:
            self.add_callback(TriedFirst(self, largest_rows))
        self.model_accepts_loss_kwargs = True
        for talkative in (PrinterCallback, ProgressCallback):
            self.remove_callback(talkative)

    # ---- rows

    def _get_train_sampler(self, train_dataset: Dataset[Numbered] | None = None) -> ShuffledByEpoch:
        return self.order

    @property
    def layout(self) -> str:
        """tree, rows or off: how the rows of a step are laid out."""
        return "off"

    @property
    def train_collator(self) -> Callable[..., Batch]:
        """Makes of training rows what `training_step` takes; held-out rows always go through `data_collator`."""
        return cast("Callable[..., Batch]", self.data_collator)

    def take_whole_steps(self) -> None:
        """Have the loader hand out the rows of a whole optimizer step, which `training_step` takes in passes.

        transformers then sees one batch a step. Accelerate holds a number of its own, fixed when the Trainer was made.
        """
        self.args.per_device_train_batch_size *= self.args.gradient_accumulation_steps
        self._train_batch_size = self.args.train_batch_size
        self.args.gradient_accumulation_steps = 1
        self.accelerator.gradient_accumulation_steps = 1

    @property
    def rows_a_step(self) -> int:
        """Rows of an optimizer step, over all ranks."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps

    def deal(self, rows: Sequence[Any]) -> list[list[int]]:
        """Places of each rank's rows among those of a step."""
        return deal([row.num_tokens for row in rows], ranks.size())

    def rows_size(self, rows: Sequence[Any]) -> tuple[int, int]:
        """Tokens of a step's rows, and what its loss is divided by."""
        return sum(row.num_tokens for row in rows), sum(row.num_trained for row in rows)

    def get_train_dataloader(self) -> DataLoader[Numbered]:
        if ranks.size() > 1:
            dataset = cast("RowDataset[Numbered]", self.train_dataset)
            collate = DealtCollate(self.deal, self.train_collator, self.rows_size, self.micro_rows)
            return DataLoader(dataset, batch_size=self.rows_a_step, sampler=self.order, collate_fn=collate)
        of_evaluation, self.data_collator = self.data_collator, self.train_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = of_evaluation

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimizer step, and what its loss is divided by."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.step_batches, self.step_loss = [], 0.0
        self.last_row_numbers = []
        self.step_tokens, items = dealt(batches[0])[SIZE] if OWN in batches[0] else self.step_size(batches)
        return batches, torch.tensor(items, device=device).clamp(min=1)

    def step_size(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Tokens of a step's micro-batches, and how many of them are trained."""
        padded = cast("Sequence[Padded]", batches)
        trained = sum(count_trained(batch["labels"]) for batch in padded)
        return sum(int(batch["attention_mask"].sum()) for batch in padded), trained

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Summed cross entropy of the micro-batch over the trained tokens of the optimizer step."""
        if return_outputs:
            raise NotImplementedError("FituneTrainer.evaluate keeps no outputs; call the model for its logits")
        batch = {name: value for name, value in cast(Padded, inputs).items() if name != ROW_NUMBERS}
        if self.noise is not None:
            self.noise.rows = padded_rows(batch["attention_mask"])
        chunking = Chunking(cast(Any, self.accelerator).autocast)
        return label_loss(model, batch, cast("Tensor | int", num_items_in_batch), chunking)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of a micro-batch; out of memory, of the step's earlier ones again, too."""
        num_items = cast("Tensor | int", num_items_in_batch)
        if OWN in inputs:
            return self._share_step(model, inputs, num_items)
        self.step_batches.append(inputs)
        return self.take_step(model, self.step_batches, num_items)

    # ---- several ranks

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """On several ranks the model as it is, with accelerate's autocast: gradients are summed behind the last pass.

        transformers would have it wrapped in DistributedDataParallel, whose sums begin within the last backward pass: a
        rank that runs out of memory there could not begin again, and packs do not go through the wrapper's forward.
        """
        if ranks.size() == 1:
            return super()._wrap_model(model, training, dataloader)
        prepared = self.accelerator.prepare_model(model, evaluation_mode=True)
        cast(Any, prepared)._is_accelerate_prepared = True  # or the Trainer's own call would wrap it after all
        broadcast_whole([value for _, value in self.trained_parameters()])
        return prepared

    def _share_step(self, model: nn.Module, inputs: Batch, num_items: Tensor | float) -> Tensor:
        """This rank's part of a step, then the sum over all ranks: gradients, loss, and what was measured."""
        batch, failure, report = dealt(inputs), None, None
        try:
            report = self.take_part(model, batch[OWN], num_items)
        except Exception as error:  # told to the others, who wait for this rank's gradients
            if self.sharded:  # they wait for its part of a layer, and hear nothing
                raise
            failure = error
        every = self.share_part(self.step_loss, report, failure)
        self.step_loss = math.fsum(one.loss for one in every)
        self.read_reports([one.measured for one in every], [[batch[ROWS][at] for at in part] for part in batch[AT]])
        return torch.tensor(self.step_loss, device=self.args.device)

    def share_part(self, loss: float, measured: object, failure: Exception | None) -> list[StepReport]:
        """Tell the others of this rank's part of a step, and sum the gradients.

        Raises:
            FituneError: on every rank, when one of them has failed.
        """
        interrupt = next((one for one in self.callback_handler.callbacks if isinstance(one, StopOnInterrupt)), None)
        mine = StepReport(loss, self.recovery.take_notes(), interrupt.number if interrupt else None, measured)
        values = [value for _, value in self.trained_parameters()]
        every = share_step(values, mine, failure, f"step {self.state.global_step + 1} is taken")
        if interrupt is not None:
            interrupt.agree([one.signal for one in every])
        return every

    def take_part(self, model: nn.Module, batches: Sequence[Batch], num_items: Tensor | float) -> object:
        """Forward and backward of this rank's part of a step; returns what `read_reports` gets of every rank."""
        if self.sharded:
            passes = [one for batch in batches for one in self.single_passes(batch)]
            most = max(together.gather(len(passes), f"passes of step {self.state.global_step + 1} are counted"))
            blank = self.train_collator(cast("RowDataset[Any]", self.train_dataset).rows[:1])
            divisors = [num_items] * len(passes) + [math.inf] * (most - len(passes))
            work = zip([*passes, *[blank] * (most - len(passes))], divisors, strict=True)
            self.recovery.run(lambda own: [self.forward_backward(model, by, one) for one, by in own], work)
            return None
        self.recovery.run(lambda own: [self.forward_backward(model, num_items, one) for one in own], batches)
        return None

    def single_passes(self, batch: Batch) -> list[Batch]:
        """A micro-batch of this rank in batches of one forward pass each."""
        rows = by_side(cast(Padded, batch), self.lengths)
        most = self.recovery.size.most
        return [
            {name: value[first : first + most] for name, value in alike.items()}
            for alike in rows
            for first in range(0, len(alike["input_ids"]), most)
        ]

    def read_reports(self, reports: Sequence[Any], parts: Sequence[Sequence[Any]]) -> None:
        """What the ranks measured in a step, and the rows of each."""
        return

    def take_step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        num_items: Tensor | float,
        where: Callable[[], str] | None = None,
    ) -> Tensor:
        """`forward_backward` of the last of a step's micro-batches so far, as `OomRecovery.run` does it."""
        work = partial(self.forward_backward, model, num_items)
        return self.recovery.run(work, batches[-1], batches[:-1], where)

    def forward_backward(self, model: nn.Module, num_items: Tensor | float, inputs: Batch) -> Tensor:
        """The gradients of a micro-batch, in passes of the size that memory allows; halts when a loss is not finite."""
        losses: list[Tensor] = []
        for part in self._cut(cast(Padded, inputs), self.recovery):
            self.last_row_numbers = part[ROW_NUMBERS].tolist()
            loss = super().training_step(model, part, cast("Tensor | int", num_items))
            value = loss.item()
            if not torch.isfinite(loss):
                self.halt(f"the loss is {value}")
            self.step_loss += value
            losses.append(loss)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def no_signal(self) -> str | None:
        """Why the step just taken had nothing to learn from, beside gradients of 0; None when it had."""
        return None

    def drop_gradients(self) -> None:
        """As at the beginning of the step."""
        self.model.zero_grad(set_to_none=True)
        self.step_loss = 0.0

    def _cut(self, inputs: Padded, recovery: OomRecovery) -> Iterable[dict[str, Tensor]]:
        """A padded batch in passes."""
        for alike in by_side(inputs, self.lengths):
            rows, width = alike["input_ids"].shape
            for here in recovery.slices(rows, width):
                forget_length(self.model, self.lengths)
                yield {name: value[here] for name, value in alike.items()}

    def halt(self, what: str) -> None:
        """Raise `TrainingHalted` with the place and what to try."""
        dtype = {"bf16": "bf16", "fp16": "fp16"}.get(self.accelerator.mixed_precision, "fp32")
        rate = self._get_learning_rate()
        advice = [f"a lower train.learning_rate (it is {rate:g} at this step)"]
        if dtype == "fp16":
            advice.insert(0, "model.precision bf16 or fp32: fp16 overflows above 65,504")
        if self.args.max_grad_norm == 0:
            advice.append("train.max_grad_norm: 1.0 (gradients are not clipped now)")
        advice.append("`fitune data show` on the rows named here")
        last = checkpoints.newest_complete(Path(str(self.args.output_dir)))
        kept = f"the last complete checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainingHalted(
            f"training halted at step {self.state.global_step + 1}: {what} (learning rate {rate:g}, {dtype}, "
            f"rows {', '.join(map(str, self.last_row_numbers))}); {kept}. Try {'; '.join(advice)}."
        )

    # ---- evaluation

    def evaluate(
        self,
        eval_dataset: Dataset[Numbered] | dict[str, Dataset[Numbered]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss per trained token over the whole set, and what ``examine`` adds; no logits are kept.

        Random numbers are put back afterwards: evaluating more often does not change the training.
        """
        model = self.model
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=gpus_in_use()), torch.no_grad():
            measured = self.measure(cast("RowDataset[Numbered] | None", eval_dataset))
            if self.extra_metrics is not None:
                measured.update(self.extra_metrics(model, self.state.global_step))
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, eval_dataset: RowDataset[Numbered] | None) -> dict[str, float]:
        """What is measured on the held-out rows without generating: the loss, and whatever a method adds."""
        doing = f"held-out rows are measured at step {self.state.global_step}"
        mine = together.everywhere(doing, lambda: self.eval_recovery.run(self._token_loss, eval_dataset))
        every = [mine] if self.sharded else together.gather(mine, doing)
        loss = sum(total for total, _ in every) / max(sum(tokens for _, tokens in every), 1)
        if not math.isfinite(loss):
            raise TrainingHalted(
                f"the loss on the held-out rows is {loss} in the evaluation at step {self.state.global_step}: "
                "weights of the model are damaged, or overflow in its precision; try model.precision bf16 or fp32"
            )
        return {"loss": loss}

    def own_eval_rows(self, eval_dataset: RowDataset[Numbered] | None) -> Sequence[Any]:
        """The held-out rows that this rank measures."""
        dataset = cast("RowDataset[Numbered]", self.eval_dataset if eval_dataset is None else eval_dataset)
        # Sharded, all ranks measure all rows: each takes the same passes.
        return dataset.rows if ranks.size() == 1 or self.sharded else dataset.rows[ranks.share(len(dataset))]

    def _eval_batches(self, eval_dataset: RowDataset[Numbered] | None) -> DataLoader[Any]:
        if ranks.size() == 1:
            return self.get_eval_dataloader(eval_dataset)
        rows, collate = RowDataset(self.own_eval_rows(eval_dataset)), cast("Callable[..., Batch]", self.data_collator)
        return DataLoader(rows, batch_size=self.args.per_device_eval_batch_size, collate_fn=collate)

    def _token_loss(self, eval_dataset: RowDataset[Numbered] | None) -> tuple[float, int]:
        """Summed loss of this rank's held-out rows, and their trained tokens."""
        total, tokens = 0.0, 0
        loader = self._eval_batches(eval_dataset)
        for _, batch in zip(follow(range(len(loader)), "evaluating the loss, batch"), loader, strict=False):
            batch = cast("dict[str, Tensor]", self._prepare_inputs(batch))
            for part in self._cut(batch, self.eval_recovery):
                with self.accelerator.autocast():
                    inputs = {name: value for name, value in part.items() if name != ROW_NUMBERS}
                    total += label_loss(self.model, inputs, 1, Chunking(cast(Any, self.accelerator).autocast)).item()
            tokens += count_trained(batch["labels"])
        return total, tokens

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write a checkpoint, mark it whole, then drop the ones over the limit."""
        broken = [name for name, value in self.trained_parameters() if not torch.isfinite(local(value)).all()]
        if broken:
            self.halt(f"{len(broken)} trained parameters are not finite, starting with {broken[0]}")
        root = Path(str(self.args.output_dir))
        folder = root / f"checkpoint-{self.state.global_step}"
        doing = f"{folder.name} is written"
        try:
            together.by_first(doing, partial(checkpoints.unmark, folder))
            together.everywhere(doing, partial(self._write_checkpoint, folder, model, trial))
            together.by_first(doing, partial(self._complete_checkpoint, folder))
        except Exception:
            if ranks.is_first():  # half a checkpoint is of no use, and a full disk needs the room
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if ranks.is_first():
            checkpoints.drop_old(root, self.keep_checkpoints, self.state.best_global_step)

    def _write_checkpoint(self, folder: Path, model: nn.Module, trial: object) -> None:
        if ranks.size() == 1:
            super()._save_checkpoint(model, trial)
            return
        # transformers' own waits for the other ranks in the middle, for ever where one of them cannot write.
        self._save_rng_state(str(folder))
        if self.sharded:
            save_optimizer(self.model, cast(torch.optim.Optimizer, self.optimizer), folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self.save_model(str(folder))
        if ranks.is_first():
            self.state.save_to_json(str(folder / checkpoints.STATE))

    def _complete_checkpoint(self, folder: Path) -> None:
        checkpoints.write_extra_state(folder, self.extra_state)
        checkpoints.mark_complete(folder)

    def trained_parameters(self) -> list[tuple[str, Tensor]]:
        """Name and value of each parameter that is trained."""
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained parameters, exactly as they are; the run's last act writes the adapter or the model."""
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: whole(value.detach()).contiguous() for name, value in self.trained_parameters()}
        if ranks.is_first():
            save_file(values, folder / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.sharded and ranks.is_first():  # the pieces of one rank, of no use alone
            (Path(output_dir) / OPTIMIZER_NAME).unlink()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (Path(checkpoint) / OPTIMIZER_FOLDER).is_dir():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.model, cast(torch.optim.Optimizer, self.optimizer), Path(checkpoint))
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler).load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_trained(Path(resume_from_checkpoint))
        self.extra_state = checkpoints.read_extra_state(Path(resume_from_checkpoint))

    def load_finished_state(self, checkpoint: Path) -> None:
        """Stand where a run stood that had finished its last step, without taking another."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))

    def load_trained(self, folder: Path) -> None:
        """Put a checkpoint's parameters into the model.

        Raises:
            RunError: the checkpoint trains other parameters.
        """
        saved, here = load_file(folder / TRAINED_FILE), dict(self.trained_parameters())
        wrong = sorted(saved.keys() ^ here.keys()) or [
            name for name, value in here.items() if value.shape != saved[name].shape
        ]
        if wrong:
            raise RunError(f"{folder} does not contain this model's trained parameters: {wrong[0]} differs")
        with torch.no_grad():
            for name, value in here.items():
                put(value, saved[name])


class _EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins, also when a resumed run begins in the middle."""

    def __init__(self, trainer: FituneTrainer):
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        steps_an_epoch = -(-self.trainer.order.num_rows // self.trainer.rows_a_step)
        self.trainer.order.set_epoch(state.global_step // steps_an_epoch)
