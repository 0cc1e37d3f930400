"""README.md of a run's adapter or model: the model card, with the metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from fitune.home_paths import without_home
from fitune.runs import manifest as manifests
from fitune.runs.html_report import changed_settings
from fitune.runs.run_folder import RunFolder


def write_card(run: RunFolder, defaults: Mapping[str, object]) -> Path:
    """Write the model card into the run's folder and beside the weights; returns the run's.

    Args:
        defaults: as in `fitune.runs.html_report.write_report`.
    """
    manifest = manifests.read(run.manifest)
    text = without_home(card_text(run, manifest, defaults))
    run.card.write_text(text, encoding="utf-8")
    for folder in (run.adapter, run.model):
        if folder.is_dir():
            (folder / "README.md").write_text(text, encoding="utf-8")
    return run.card


def card_text(run: RunFolder, manifest: manifests.Manifest, defaults: Mapping[str, object]) -> str:
    """The card: what it is, what it was trained on, what was measured, how to use it."""
    model, data = manifest.get("model", {}), manifest.get("data", {})
    lora, judge = manifest.get("tuning") == "lora", manifest.get("method") == "reward"
    head: dict[str, object] = {
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-classification" if judge else "text-generation",
        "license": "unknown",
        "tags": ["fitune", str(manifest.get("method")), *(["lora"] if lora else [])],
    }
    on_hub = model.get("kind") == "hub"
    if on_hub:
        head["base_model"] = model.get("name")
    held_out = data.get("eval_rows", data.get("test_rows", 0))  # test_rows: before 0.2.0
    results = manifest.get("results", {})
    before, after = results.get("before") or {}, results.get("after") or {}
    numbers = [name for name, value in after.items() if isinstance(value, float) and name in before]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {run.path.name}",
        "",
        f"{model.get('name')} fine-tuned with fitune ({manifest.get('method')}, {manifest.get('tuning')}).",
        "",
        "## Trained on",
        "",
        f"{data.get('train')}: {data.get('train_rows', 0):,} rows; {held_out:,} held out.",
        *(f"- `{name}` SHA-256 or origin: `{digest}`" for name, digest in data.get("hashes", {}).items()),
        "",
        "## Measured on the held-out rows",
        "",
    ]
    if numbers:
        lines += ["| metric | before | after |", "|---|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {before[name]:.4f} | {after[name]:.4f} |" for name in numbers]
    else:
        lines += ["No rows were held out."]
    lines += ["", "## Settings that differ from the defaults", ""]
    lines += [f"- `{name}`: `{value}`" for name, value in changed_settings(run, defaults)]
    use = f"fitune score {run.path} --data answers.jsonl" if judge else f"fitune chat {run.path}"
    lines += ["", "## Use", "", "```sh", use, "```", ""]
    if lora and model.get("merged"):
        lines += [
            "Other adapters are merged into its base (the folder `merged` has them): fitune applies them, plain PEFT",
            "does not. `fitune export --to merged` writes a model that opens anywhere.",
            "",
        ]
    elif lora:
        name = without_home(str(model.get("name")))
        lines += [*_in_plain_peft(name, on_hub or (model.get("kind") == "folder" and not name.startswith("~"))), ""]
    if judge:
        lines += [
            "The head lies beside it in `head.safetensors`: an answer's reward is the product of its `weight` and the last "
            "hidden state (behind the final norm) at the answer's end token.",
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    lines += ["## Versions", "", versions, ""]
    return "\n".join(lines)


def _in_plain_peft(base: str, loads_by_name: bool) -> list[str]:
    """How the adapter opens without fitune; PEFT finds by name only a base that transformers finds by name."""
    if loads_by_name:
        code = [
            "from peft import AutoPeftModelForCausalLM",
            'model = AutoPeftModelForCausalLM.from_pretrained("adapter")',
        ]
    else:
        code = [
            "from peft import PeftModel",
            f"# base: {base}, opened by transformers",
            'model = PeftModel.from_pretrained(base, "adapter")',
        ]
    return ["It is a plain PEFT adapter; without fitune:", "", "```python", *code, "```"]
