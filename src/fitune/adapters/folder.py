"""An adapter on disk: PEFT's own two files, beside them the tokenizer, the template and fitune.json.

The folder opens in plain PEFT. fitune.json says which base it belongs to, so that another base is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from fitune.errors import ModelError
from fitune.models.load import LoadedBase, add_template_tokens
from fitune.models.template import Template

FACTS = "fitune.json"


def base_facts(base: LoadedBase) -> dict[str, Any]:
    """What an adapter must find again: the base's origin, shapes, vocabulary and template."""
    config = base.model.config
    return {
        "base": base.source.to_dict(),
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "num_layers": getattr(config, "num_hidden_layers", None),
        "embedding_rows": base.model.get_input_embeddings().weight.shape[0],
        "template": {
            "origin": base.template.origin,
            "end_of_turn": base.template.end_of_turn,
            "added_tokens": list(base.template.added_tokens),
            "sha256": hashlib.sha256(base.template.text.encode()).hexdigest(),
        },
        "precision": base.precision.name,
    }


def save_adapter(model: PeftModel, tokenizer, template: Template, folder: Path, facts: dict[str, Any]) -> None:
    """Write the adapter with everything needed to chat with it; whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "adapter"
        _save_peft(model, whole, Path(scratch) / "initial")
        _name_base(whole, str(facts["base"]["name"]), facts["base"]["revision"])
        tokenizer.chat_template = template.text
        tokenizer.save_pretrained(whole)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(whole)
        (whole / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """fitune.json of an adapter folder; for an adapter made by plain PEFT, what its own config tells.

    Raises:
        ModelError: the folder holds no adapter.
    """
    if (folder / FACTS).exists():
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if not (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} holds no adapter: it has no adapter_config.json")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    name = config.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{folder}/adapter_config.json does not name its base model")
    return {"base": {"name": name, "revision": config.get("revision")}}


def load_tokenizer_of(folder: Path):
    """The tokenizer saved with an adapter, or None when it was saved without one."""
    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").exists() else None


def load_adapter(base: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """The base with the adapter of `folder` on it.

    Raises:
        ModelError: another base (architecture, shapes, vocabulary), or a damaged adapter file.
    """
    facts, config = read_facts(folder), base.config
    found = {
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "num_layers": getattr(config, "num_hidden_layers", None),
        "embedding_rows": base.get_input_embeddings().weight.shape[0],
    }
    for key, value in found.items():
        if facts.get(key) not in (None, value):
            raise ModelError(
                f"the adapter in {folder} belongs to another base: its {key.replace('_', ' ')} is {facts[key]}, "
                f"this model's is {value}. It was trained on {facts['base']['name']}"
            )
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise ModelError(f"{folder} has no adapter_model.safetensors; pickled adapters are not loaded")
    try:
        load_file(weights)
    except Exception as error:  # safetensors raises its own class for each kind of damage
        raise ModelError(f"{weights} is damaged: {error}") from error
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)


def grow_for(base: PreTrainedModel, tokenizer, facts: dict[str, Any], template: Template) -> None:
    """Give a fresh base the embedding rows that the adapter's template tokens had in training."""
    if facts.get("template", {}).get("added_tokens"):
        rows = facts["embedding_rows"]
        if base.get_input_embeddings().weight.shape[0] < rows:
            base.resize_token_embeddings(rows, mean_resizing=False)
    else:
        add_template_tokens(base, tokenizer, template)


def _save_peft(model: PeftModel, folder: Path, initial: Path) -> None:
    """PEFT's save; a PiSSA adapter is turned into a LoRA over the untouched base on the way."""
    first = getattr(model, "fitune_initial", None)
    if first is None:
        model.save_pretrained(str(folder), save_embedding_layers=False)
        return
    # PEFT reads the initial adapter from a folder: save the present one, then put the initial values in its place.
    model.save_pretrained(str(initial), save_embedding_layers=False)
    path = initial / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in first.items():
        tensors[name.replace(".default", "")] = value.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = model.peft_config["default"]
    before = (config.r, config.lora_alpha, config.init_lora_weights)
    model.save_pretrained(
        str(folder), save_embedding_layers=False, path_initial_model_for_weight_conversion=str(initial)
    )
    # PEFT doubles the live configuration's rank while it writes; the live model keeps its own.
    config.r, config.lora_alpha, config.init_lora_weights = before


def _name_base(folder: Path, name: str, revision: str | None) -> None:
    """Name the base as the user named it, not by the cache folder it was loaded from."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"], config["revision"] = name, revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
