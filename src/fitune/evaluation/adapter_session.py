"""The adapters of a conversation: which answers, which lie beside it, what is merged; each step tells what it did.

In: a `Target`. Out: the model that answers now, and a sentence for the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from fitune.adapters import in_memory
from fitune.adapters.base_snapshot import changed, digests
from fitune.adapters.locate import find_adapter, refuse_other_merges
from fitune.adapters.storage import title
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target

if TYPE_CHECKING:
    from fitune.evaluation.generation import LanguageModel


class Desk:
    """Adapters by name over one base. Every step raises `ModelError` where it cannot be done, and changes nothing then."""

    def __init__(self, target: Target, runs_folder: str | Path = "runs"):
        self.model: LanguageModel = target.model
        self.runs_folder = runs_folder
        self.last: str | None = None
        self.places: dict[str, Path] = {}
        if target.adapter is not None:
            self.adapter_folder = target.adapter
            self.last = in_memory.plain_name(title(target.adapter))
            in_memory.rename(self._peft(), "default", self.last)
            self.places[self.last] = target.adapter

    def speaker(self) -> str:
        """Name of what answers now: the active adapter, or base."""
        active = in_memory.active(self.model) if isinstance(self.model, PeftModel) else ()
        return ", ".join(active) or in_memory.BASE

    def adapters(self) -> str:
        """What is in memory, and what answers."""
        if not isinstance(self.model, PeftModel):
            return "no adapter is in memory: the base answers"
        merged, active = in_memory.merged(self.model), in_memory.active(self.model)
        lines = [f"{'*' if not active else ' '} base"]
        for name in in_memory.names(self.model):
            state = " (merged into the base)" if name in merged else ""
            lines.append(f"{'*' if name in active else ' '} {name}{state}  {self.places.get(name, '')}")
        return "\n".join(lines)

    def use(self, name: str) -> str:
        """Answer with an adapter; one that is not in memory is loaded from its run or folder."""
        if not name:
            raise ModelError("/use needs a name: one of /adapters, a run, an adapter's folder, or base")
        if name == in_memory.BASE:
            return self.base()
        model = self._peft()
        if name not in in_memory.names(model):
            folder = find_adapter(name, self.runs_folder)
            name = in_memory.plain_name(title(folder))
            if name not in in_memory.names(model):
                refuse_other_merges(self.adapter_folder, folder)
                in_memory.add(model, folder, name)
                self.places[name] = folder
        in_memory.use(model, name)
        self.last = name
        return f"{name} answers"

    def base(self) -> str:
        """Answer with the base alone."""
        in_memory.use(self._peft(), in_memory.BASE)
        return "the base answers alone"

    def adapter(self) -> str:
        """Answer with the adapter that answered last."""
        model = self._peft()
        return self.use(self.last or in_memory.names(model)[0])

    def merge(self) -> str:
        """Add the adapter that answers into the base."""
        return str(in_memory.merge(self._peft()))

    def unmerge(self) -> str:
        """Take it out again."""
        return str(in_memory.unmerge(self._peft()))

    def unload(self) -> str:
        """Drop every adapter."""
        model = self._peft()
        restored = in_memory.unmerge(model) if in_memory.merged(model) else None
        in_memory.use(model, in_memory.BASE)
        # Biases that an adapter trains lie in the base itself; unloading puts the old ones back.
        biases = any(getattr(config, "bias", "none") != "none" for config in model.peft_config.values())
        before = {name: value for name, value in digests(model).items() if not (biases and name.endswith("bias"))}
        self.model, _ = in_memory.unload(model)
        self.model.eval()
        self.last, self.places = None, {}
        after = digests(self.model)
        if different := changed(before, {name: after.get(name, "") for name in before}):
            return f"the bare base answers; {len(different)} of its tensors have changed, starting with {different[0]}"
        proof = f"{restored}; " if restored is not None else ""
        again = "; its biases are restored" if biases else ""
        return f"every adapter is gone, the bare base answers; {proof}{len(before)} tensors compared, none has changed{again}"

    def _peft(self) -> PeftModel:
        if not isinstance(self.model, PeftModel):
            raise ModelError("this is a bare model: it has no adapter; start `fitune chat` with a run to have one")
        return self.model
