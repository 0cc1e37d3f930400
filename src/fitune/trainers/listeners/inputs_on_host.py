"""Layer inputs moved to the host from the first step on (`train.activation_offloading`)."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fitune.ops.offload.host_inputs import HostInputs, keep_inputs_on_host


class InputsOnHost(TrainerCallback):
    """Has checkpointed layers keep their inputs in the host's memory; the trainer has switched checkpointing on by then.

    Args:
        inputs: where they are kept.
    """

    def __init__(self, inputs: HostInputs | None = None):
        self.inputs = inputs or HostInputs()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        assert isinstance(model, nn.Module)
        keep_inputs_on_host(model, self.inputs)
