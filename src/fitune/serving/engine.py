"""The model of a server, in a thread of its own: requests that wait are answered together, one adapter at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Thread

from fitune.adapters import in_memory
from fitune.adapters.adapter_folder import load_tokenizer_of
from fitune.adapters.locate import find_adapter, refuse_other_merges
from fitune.data.render.asking import Asking
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target
from fitune.serving.batch_generation import AnswerRequest, answer_batch


@dataclass
class Waiting:
    """A request in the queue. `ended` is told once: None, or what went wrong."""

    model: str
    request: AnswerRequest
    ended: Callable[[BaseException | None], None]


@dataclass(frozen=True)
class ServedModel:
    """A name that a client may ask for: an adapter in memory, or (None) the base alone, and how it is asked."""

    name: str
    adapter: str | None
    renderer: Renderer


def served_models(target: Target, base_id: str, target_id: str, adapters: Mapping[str, str]) -> dict[str, ServedModel]:
    """Load the adapters beside the target's own; what can be asked for, the target first.

    Args:
        adapters: name → run or adapter folder.

    Raises:
        ModelError: adapters over a bare model, another base or another chat template, a name that stands twice.
    """
    if target.adapter is None:
        if adapters:
            raise ModelError(
                f"--adapter needs a run over the same base as TARGET; {target_id} is a bare model: name one of the runs as "
                "TARGET and the others with --adapter"
            )
        return {target_id: ServedModel(target_id, None, target.renderer)}
    model = target.peft_model
    in_memory.rename(model, "default", in_memory.plain_name(target_id))
    found = {target_id: ServedModel(target_id, in_memory.plain_name(target_id), target.renderer)}
    for name, place in adapters.items():
        if name in (*found, base_id):
            raise ModelError(f'--adapter {name}={place}: the name "{name}" is taken; give it another')
        folder = find_adapter(place)
        refuse_other_merges(target.adapter, folder)
        in_memory.add(model, folder, in_memory.plain_name(name))
        found[name] = ServedModel(name, in_memory.plain_name(name), _renderer_for(folder, target.renderer))
    model.eval()
    return {**found, base_id: ServedModel(base_id, None, target.renderer)}


def _renderer_for(folder: Path, renderer: Renderer) -> Renderer:
    """The target's renderer, asking as another adapter was trained."""
    tokenizer = load_tokenizer_of(folder)
    if tokenizer is not None and tokenizer.chat_template != renderer.tokenizer.chat_template:
        raise ModelError(f"{folder} was trained with another chat template than TARGET; serve it by itself")
    return replace(renderer, asking=Asking.read(folder))


@dataclass
class Engine:
    """Answers requests in the order in which they came, those for the same model together, up to `batch_size`.

    One at a time (`batch_size` 1) gives the very tokens of `fitune chat`; in a batch sums are added in another order,
    which can decide between two tokens that are equally likely.
    """

    target: Target
    models: Mapping[str, ServedModel]
    batch_size: int = 8
    max_waiting: int = 256
    _queue: deque[Waiting] = field(default_factory=deque)
    _changed: Condition = field(default_factory=Condition)
    _closed: bool = False

    def start(self) -> Engine:
        """Begin to answer."""
        Thread(target=self._run, daemon=True, name="fitune serve").start()
        return self

    def submit(self, waiting: Waiting) -> bool:
        """Put a request into the queue; False when it is full."""
        with self._changed:
            if len(self._queue) >= self.max_waiting or self._closed:
                return False
            self._queue.append(waiting)
            self._changed.notify()
            return True

    def close(self) -> None:
        """Answer nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except BaseException as error:  # told to the clients: the thread has to go on for the next ones
                for waiting in batch:
                    waiting.ended(error)
            else:
                for waiting in batch:
                    waiting.ended(None)

    def _next(self) -> list[Waiting]:
        """The oldest request and others for the same model; waits for one. Empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return []
            model = self._queue[0].model
            batch = [waiting for waiting in self._queue if waiting.model == model][: self.batch_size]
            taken = {id(waiting) for waiting in batch}
            self._queue = deque(waiting for waiting in self._queue if id(waiting) not in taken)
            return batch

    def _answer(self, batch: Sequence[Waiting]) -> None:
        served = self.models[batch[0].model]
        alive = [waiting.request for waiting in batch if not waiting.request.cancelled.is_set()]
        if not alive:
            return
        if self.target.adapter is not None:
            in_memory.use(self.target.peft_model, served.adapter or in_memory.BASE)
        answer_batch(self.target.model, served.renderer, alive)
