"""The data that configs of other tools name: LLaMA-Factory's dataset_info.json, axolotl's `datasets`.

In: the config's mapping. Out: settings of the data section; what cannot be told is added to ``left_out``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# LLaMA-Factory's name of a column → fitune's, by format.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
AXOLOTL_FIELDS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output", "field_system": "system",
    "field_messages": "messages", "field": "text",
}  # fmt: skip


def llama_factory_data(given: Mapping[str, Any], config: Path, left_out: dict[str, str]) -> dict[str, object]:
    """`dataset` by the entries of dataset_info.json, which is looked for in `dataset_dir`, beside the config and in data/."""
    folders = [Path(str(given.get("dataset_dir", "data"))), config.parent / str(given.get("dataset_dir", "data"))]
    folder = next((one for one in [*folders, config.parent] if (one / "dataset_info.json").is_file()), None)
    info: dict[str, Any] = {}
    if folder is not None:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    found: dict[str, object] = {}
    columns: dict[str, str] = {}
    for key, setting in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        names = _names(given.get(key))
        if not names:
            continue
        sources = [_llama_factory_source(name, info.get(name), folder, left_out) for name in names]
        found[setting] = sources[0] if len(sources) == 1 else sources
        for name in names:
            columns |= _llama_factory_columns(info.get(name) or {})
    return found | ({"data.columns": columns} if columns else {})


def _llama_factory_source(name: str, entry: Any, folder: Path | None, left_out: dict[str, str]) -> str:
    if not entry or folder is None:
        left_out[f"dataset {name}"] = "dataset_info.json has no such entry; put the file's name into data.train"
        return name
    if file := entry.get("file_name"):
        return str(folder / file)
    if hub := entry.get("hf_hub_url"):
        return f"hub:{hub}" + (f":{entry['subset']}" if entry.get("subset") else "")
    left_out[f"dataset {name}"] = f"its entry has no file_name and no hf_hub_url: {json.dumps(entry)[:80]}"
    return name


def _llama_factory_columns(entry: Mapping[str, Any]) -> dict[str, str]:
    """data.columns: the form's column → the file's, where they differ."""
    table = SHAREGPT if entry.get("formatting") == "sharegpt" else ALPACA
    named = {table[key]: column for key, column in (entry.get("columns") or {}).items() if key in table}
    return {own: theirs for own, theirs in named.items() if own != theirs and theirs != "messages"}


def axolotl_data(given: Mapping[str, Any], left_out: dict[str, str]) -> dict[str, object]:
    """`datasets` and `test_datasets`: paths or hub names, with the columns that they rename."""
    found: dict[str, object] = {}
    columns: dict[str, str] = {}
    for key, setting in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        sources: list[str] = []
        for entry in given.get(key) or ():
            path = str(entry.get("path", ""))
            local = Path(path).expanduser()
            files = entry.get("data_files")
            if files:
                sources += [files] if isinstance(files, str) else list(files)
            else:
                here = local.exists() or local.suffix
                sources.append(path if here else f"hub:{path}" + (f":{entry['name']}" if entry.get("name") else ""))
            columns |= {
                own: entry[name] for name, own in AXOLOTL_FIELDS.items() if name in entry and entry[name] != own
            }
            kind = str(entry.get("type", ""))
            if kind == "completion":
                found["method"] = "lm"
            if entry.get("split") and entry["split"] != "train":
                found["data.hub_split"] = entry["split"]
            if entry.get("roles") or entry.get("message_property_mappings"):
                left_out[f"{key} {path}"] = (
                    "roles and properties of messages are recognized by themselves; check the data"
                )
        if sources:
            found[setting] = sources[0] if len(sources) == 1 else sources
    return found | ({"data.columns": columns} if columns else {})


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    return [str(one) for one in value] if isinstance(value, list) else []
