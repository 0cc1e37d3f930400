"""An adapter on disk: PEFT's own two files, beside them the tokenizer, the template and fitune.json.

The folder opens in plain PEFT. fitune.json says which base it belongs to, so that another base is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fitune.adapters.compatibility import check_belongs, fingerprint
from fitune.adapters.inject import cast_trained_to_fp32, compute_in, fuse, refuse_dora_on_cpu, remember_biases
from fitune.adapters.locate import Facts, copy_merged, merged_facts, read_config, read_facts
from fitune.data.render.time_limit import looked_at
from fitune.errors import FituneError, ModelError
from fitune.home_paths import without_home
from fitune.models.load_base import LoadedBase, add_template_tokens, input_weight
from fitune.models.source import ModelSource
from fitune.models.template import SLOWEST_SECONDS, Template
from fitune.models.tokenizer import library_words, load_tokenizer
from fitune.models.weight_files.adapter_check import CONFIG, FACTS, check_adapter_files
from fitune.ops.fused_lora import use_fast_lora
from fitune.ops.trained_tokens import use_trained_tokens
from fitune.runs.disk_faults import scratch_beside


def base_facts(base: LoadedBase) -> Facts:
    """What an adapter must find again: the base's origin, shapes, vocabulary and template."""
    config, origin = base.model.config, base.source.to_dict()
    if base.source.kind in ("folder", "gguf"):
        origin["name"] = without_home(str(Path(base.source.name).expanduser().resolve()))
    facts: Facts = {
        "base": origin,
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "num_layers": getattr(config, "num_hidden_layers", None),
        "embedding_rows": input_weight(base.model).shape[0],
        "commit": getattr(config, "_commit_hash", None),
        "weights": fingerprint(base.model),
        "template": {
            "origin": base.template.origin,
            "end_of_turn": base.template.end_of_turn,
            "added_tokens": list(base.template.added_tokens),
            "sha256": template_digest(base.template),
        },
        "precision": base.precision.name,
        "quantization": base.quantization.to_dict() if base.quantization.on else None,
    }
    if base.merged:
        facts["merged"] = merged_facts(base.merged)
    return facts


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    folder: Path,
    facts: Facts,
    name: str = "default",
    beside: Mapping[str, dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write the adapter with everything needed to chat with it; whole or not at all.

    Args:
        name: which of the adapters in memory.
        beside: name of a safetensors file → its tensors, for what lies beside the adapter (a head).

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(folder) as scratch:
        whole = scratch / "adapter"
        _save_peft(model, whole, name)
        for file_name, tensors in (beside or {}).items():
            save_file(tensors, whole / file_name)
        merged = facts.get("merged") or ()
        copy_merged(merged, whole)
        # Plain PEFT must not take the bare base for the one with adapters in it.
        with_merged = f" with {len(merged)} adapters merged in, see {FACTS}" if merged else ""
        _name_base(whole, f"{facts['base']['name']}{with_merged}", facts["base"]["revision"])
        tokenizer.chat_template = template.text
        tokenizer.save_pretrained(whole)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(whole)
        if (init := getattr(model, "fitune_init", None)) is not None:
            facts = {**facts, "init": init}
        (whole / FACTS).write_text(without_home(json.dumps(facts, indent=2)) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)


def load_tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved with an adapter, or None when it was saved without one.

    Raises:
        ModelError: it cannot be loaded, or wants to run code of its own.
    """
    if not (folder / "tokenizer_config.json").exists():
        return None
    check_adapter_files(folder)
    return load_tokenizer(ModelSource(kind="folder", name=str(folder), path=str(folder)), pads=False)


def load_adapter(base: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """The base with the adapter of `folder` on it.

    Args:
        trainable: to be trained further, as `attach` would have made it; else to be asked.

    Raises:
        ModelError: another base (architecture, shapes, vocabulary), or a damaged adapter file.
    """
    tensors = check_belongs(base, folder)
    dtype = input_weight(base).dtype
    remember_biases(base, read_config(folder).get("bias", "none"))
    if read_config(folder).get("use_dora"):
        refuse_dora_on_cpu(base)
    _refuse_slow_pattern(base, folder)
    with _peft_told(folder):
        config = PeftConfig.from_pretrained(str(folder))
        fast = trainable and use_fast_lora(cast(LoraConfig, config), base)
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, config=config)
    model.fitune_init = read_facts(folder).get("init")  # type: ignore[assignment]
    _restore_fp32(model, tensors, "default")
    use_trained_tokens(model)
    if trainable:
        fuse(model, fast)
        cast_trained_to_fp32(model)
    compute_in(model, dtype)
    return model


def _too_slow() -> None:
    raise TimeoutError(f"more than {SLOWEST_SECONDS:g} s")


def _refuse_slow_pattern(base: PreTrainedModel, folder: Path) -> None:
    """Raises ModelError for a regular expression of target modules that tries too many ways."""
    pattern = read_config(folder).get("target_modules")
    if not isinstance(pattern, str):
        return
    try:
        with looked_at(_too_slow, SLOWEST_SECONDS):
            for name, _ in base.named_modules():
                re.fullmatch(pattern, name)
    except (TimeoutError, re.error) as error:
        raise ModelError(
            f"{folder / CONFIG} says target_modules is {pattern!r:.60}, which cannot be matched ({error}); name the "
            "modules in a list"
        ) from error


@contextmanager
def _peft_told(folder: Path) -> Generator[None, None, None]:
    """What PEFT says of an adapter that does not fit, as `ModelError`; of tensors that are missing it only warns."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            yield
    except UserWarning as error:
        raise ModelError(f"the adapter in {folder} is incomplete: {library_words(error)}; copy it again") from error
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        if isinstance(error, FituneError):
            raise
        raise ModelError(f"the adapter in {folder} cannot be loaded: {library_words(error)}") from error


def continue_adapter(base: LoadedBase, folder: Path) -> PeftModel:
    """The base with a saved adapter that is trained further: the start of a second run, of PPO after SFT, and so on.

    Raises:
        ModelError: as `load_adapter`; and another chat template than the adapter's.
    """
    saved = read_facts(folder).get("template")
    if saved and saved["sha256"] != template_digest(base.template):
        raise ModelError(
            f"the adapter in {folder} was trained with another chat template; "
            f"set model.chat_template to {folder / 'chat_template.jinja'}"
        )
    return load_adapter(base.model, folder, trainable=True)


def template_digest(template: Template) -> str:
    """SHA-256 of a chat template's text."""
    return hashlib.sha256(template.text.encode()).hexdigest()


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load the adapter of `folder` as `name` beside those that lie on the model already; it is not switched to.

    Raises:
        ModelError: as `load_adapter`; and two adapters that both train biases, which live in the base itself.
    """
    base = cast(PreTrainedModel, model.get_base_model())
    tensors = check_belongs(base, folder)
    others = [other for other, config in model.peft_config.items() if getattr(config, "bias", "none") != "none"]
    if read_config(folder).get("bias", "none") != "none" or others:
        raise ModelError(
            f"{others[0] if others else folder} trains biases of the base; it cannot be loaded next to another adapter"
        )
    dtype = input_weight(base).dtype
    _refuse_slow_pattern(base, folder)
    with _peft_told(folder):
        model.load_adapter(str(folder), adapter_name=name, torch_device=str(next(model.parameters()).device))
    _restore_fp32(model, tensors, name)
    compute_in(model, dtype)


def _restore_fp32(model: PeftModel, tensors: dict[str, torch.Tensor], name_of: str) -> None:
    """Put back in fp32 what was trained in full: PEFT has rounded it to the base's type on loading."""
    saved = {name.split(".", 2)[2] for name in tensors if ".lora_" not in name}
    # A head on top of the whole has a shorter name and is nothing of the adapter.
    plain = {name: name.split(".", 2)[2] for name, _ in model.named_parameters() if name.count(".") > 1}
    whole = {name for name, inner in plain.items() if inner.replace(f".modules_to_save.{name_of}", "") in saved}
    whole |= {name for name, inner in plain.items() if inner.replace(".base_layer.", ".") in saved}
    for name, parameter in model.named_parameters():
        if name in whole and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if whole:
        set_peft_model_state_dict(model, tensors, adapter_name=name_of)


def grow_for(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Facts, template: Template) -> None:
    """Give a fresh base the embedding rows that the adapter's template tokens had in training."""
    saved, rows = facts.get("template"), facts.get("embedding_rows", 0)
    if saved and saved.get("added_tokens"):
        if input_weight(base).shape[0] < rows:
            base.resize_token_embeddings(rows, mean_resizing=False)
    else:
        add_template_tokens(base, tokenizer, template)


def _save_peft(model: PeftModel, folder: Path, name: str) -> None:
    """PEFT's save of one adapter; a PiSSA adapter is turned into a LoRA over the untouched base on the way.

    PiSSA (arXiv 2404.02948, appendix C) trains W_res + s·B·A with W_res = W − s·B0·A0, so over W the same function is
    W + s·[B, −B0]·[A; A0]: a LoRA of twice the rank.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[name])
    if name != "default":  # PEFT gives each other one a folder of its own
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    first = getattr(model, "fitune_initial", None)
    if first is None or name != "default":
        return
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in first.items():
        saved = name.replace(".default.", ".")
        is_a = ".lora_A." in name
        both = (tensors[saved], (value if is_a else -value).to(tensors[saved]))
        tensors[saved] = torch.cat(both, dim=0 if is_a else 1).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # The scale s stays: alpha / r, or alpha / sqrt(r) when rank-stabilised.
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    config["r"], config["init_lora_weights"] = 2 * config["r"], True
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name_base(folder: Path, name: str, revision: str | None) -> None:
    """Name the base as the user named it, not by the cache folder it was loaded from."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"], config["revision"] = name, revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
