"""`fitune adapters` and the adapters' commands of chat, on two tiny runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.adapters.storage import describe
from fitune.cli import cli
from fitune.errors import ModelError, RunError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer


def open_base(folder: Path) -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    return load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(torch.float32, "test"))


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", tie_word_embeddings=False, initializer_range=0.5)


@pytest.fixture
def runs(llama: Path, tmp_path: Path) -> Path:
    """Two adapters, "one" of rank 4 and "two" of rank 6 with norms, each in a run's folder, both far from the base."""
    for seed, (name, options) in enumerate({"one": {"rank": 4}, "two": {"rank": 6, "train_norms": True}}.items()):
        base = open_base(llama)
        torch.manual_seed(seed)
        model = attach(base.model, lora_config(base.model, init="debug", alpha=256, **options))
        save_adapter(model, base.tokenizer, base.template, tmp_path / "runs" / name / "adapter", base_facts(base))
    (tmp_path / "runs" / "one" / "manifest.json").write_text(
        json.dumps({"parameters": {"total": 60_000}, "status": "finished", "model": {}})
    )
    return tmp_path / "runs"


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def adapters(runs: Path, *arguments: str) -> Any:
    return run("adapters", *arguments, "--folder", str(runs))


def told(runs: Path, *arguments: str) -> Any:
    result = adapters(runs, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_and_show(runs: Path, llama: Path):
    assert [(one["name"], one["rank"]) for one in told(runs, "list")] == [("one", 4), ("two", 6)]
    shown = told(runs, "show", "one")
    # By hand: rank 4 over q, k, v, o (32→32, 32→16, 32→16, 32→32), gate, up, down (32↔64), two layers.
    assert shown["parameters"]["q_proj"] == shown["parameters"]["o_proj"] == 2 * 4 * 64
    assert shown["trained"] == sum(shown["parameters"].values()) == 2 * 4 * (64 + 48 + 48 + 64 + 3 * 96)
    assert shown["share"] == shown["trained"] / 60_000
    assert shown["base"] == str(llama) and shown["bytes"] > 4 * shown["trained"] and shown["in_full"] == {}
    norms = told(runs, "show", "two")["in_full"]
    assert norms == {"input_layernorm": 64, "norm": 32, "post_attention_layernorm": 64}
    for command in (("list",), ("show", "one"), ("compare", "one", "two")):
        assert "one" in adapters(runs, *command).stdout
    (runs / "two" / "adapter" / "adapter_config.json").write_text("{")
    assert "damaged" in told(runs, "list")[1]["error"]


def test_compare_against_the_products_themselves(runs: Path, llama: Path):
    found = told(runs, "compare", "one", "two")
    updates = []
    for name in ("one", "two"):
        model = load_adapter(open_base(llama).model, runs / name / "adapter")
        layers: Any = [layer.self_attn.q_proj for layer in model.get_base_model().model.layers]
        updates.append(torch.cat([layer.get_delta_weight("default").flatten() for layer in layers]))
    q = found["modules"]["q_proj"]
    assert q["norms"] == pytest.approx([update.norm().item() for update in updates], rel=1e-4)
    assert q["cosine"] == pytest.approx(torch.cosine_similarity(*updates, dim=0).item(), abs=1e-4)
    assert found["same_base"] and found["options"]["rank"] == [4, 6]
    assert told(runs, "compare", "one", "one")["modules"]["q_proj"]["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("moved", [0, 1e-6, 1e-5])
def test_compare_after_little_training_from_pissa(runs: Path, llama: Path, moved: float):
    """Saved are B·A − B₀·A₀, whose norm's square is the small rest of large terms; against the products in fp64."""
    for seed in range(3):
        base = open_base(llama)
        torch.manual_seed(seed)
        model = attach(base.model, lora_config(base.model, init="pissa", rank=4, alpha=8))
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.data += moved * torch.randn_like(weight)
        folder = runs / f"pissa{seed}" / "adapter"
        save_adapter(model, base.tokenizer, base.template, folder, base_facts(base))
        saved = load_file(folder / "adapter_model.safetensors")
        sizes = []
        for name in (name for name in saved if "o_proj.lora_A" in name):
            a, b = saved[name], saved[name.replace("lora_A", "lora_B")]
            sizes.append(2 * (b.double() @ a.double()).norm().item())  # alpha / rank
        found = told(runs, "compare", f"pissa{seed}", f"pissa{seed}")["modules"]["o_proj"]
        assert found["norms"] == pytest.approx([math.hypot(*sizes)] * 2, rel=1e-3, abs=1e-6)


def test_proofs_of_merge_unmerge_and_unload(runs: Path):
    merge = told(runs, "merge", "one", "--device", "cpu", "--precision", "bf16")
    assert merge["layers"] == 14 and merge["difference"]["largest"] > 0 and merge["kept_bytes"] > 0
    unmerge = told(runs, "unmerge", "one", "--device", "cpu", "--precision", "bf16")
    assert unmerge["restored"]["exact"] and not unmerge["by_arithmetic"]["exact"]
    assert unmerge["difference"]["largest"] == 0 and unmerge["by_arithmetic"]["bits"] > 2
    unload = told(runs, "unload", "two", "--device", "cpu")
    assert unload["restored"]["exact"] and unload["restored"]["tensors"] > 14
    assert "bit for bit" in adapters(runs, "unload", "one", "--device", "cpu").stdout


def test_combine(runs: Path, llama: Path):
    made = told(runs, "combine", "one=0.7", "two=0.3", "--as", "both", "--device", "cpu")
    assert made["rank"] == 10 and made["parts"] == [["one", 0.7], ["two", 0.3]]
    assert describe(runs / "both")["rank"] == 10
    first = told(runs, "combine", "one=1", "two=0", "--as", "first", "--kind", "svd", "--device", "cpu")
    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        models = [load_adapter(open_base(llama).model, at) for at in (runs / "one" / "adapter", Path(first["folder"]))]
        logits = [model.eval()(ids).logits for model in models]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-4)  # logits are about 50 here
    facts = json.loads((runs / "both" / "fitune.json").read_text())
    assert [part["weight"] for part in facts["combined"]] == [0.7, 0.3]
    for arguments, reason in [
        (("one=1", "two=1", "--as", "both"), "already exists"),
        (("one=1", "two=1", "--as", "x", "--kind", "linear"), "ranks must be equal"),
        (("one=1", "--as", "x"), "two different adapters"),
        (("one=1", "tow=1", "--as", "x"), 'did you mean "two"'),
    ]:
        result = adapters(runs, "combine", *arguments, "--device", "cpu")
        assert isinstance(result.exception, ModelError) and reason in str(result.exception)
    assert adapters(runs, "combine", "one", "two=1", "--as", "x").exit_code == 2


def test_delete_and_rename(runs: Path):
    refused = adapters(runs, "delete", "one")
    assert isinstance(refused.exception, ModelError) and "only copy" in str(refused.exception)
    assert (runs / "one" / "adapter").is_dir()
    assert adapters(runs, "rename", "two", "second").exit_code == 0
    assert describe(runs / "second" / "adapter")["name"] == "second" and not (runs / "two").exists()
    taken = adapters(runs, "rename", "second", "one")
    assert isinstance(taken.exception, ModelError) and "already exists" in str(taken.exception)

    going_on = {"status": "running", "model": {"continues": {"adapter": str((runs / "one" / "adapter").resolve())}}}
    (runs / "three").mkdir()
    (runs / "three" / "manifest.json").write_text(json.dumps(going_on))
    used = adapters(runs, "delete", "one", "--yes")
    assert isinstance(used.exception, RunError) and "continues " in str(used.exception)
    (runs / "three" / "manifest.json").unlink()
    lock = runs / "one" / "run.lock"
    lock.write_text(json.dumps({"pid": 1, "host": __import__("platform").node()}))
    locked = adapters(runs, "delete", "one", "--yes")
    assert isinstance(locked.exception, RunError) and "being written by process 1" in str(locked.exception)
    lock.unlink()
    assert adapters(runs, "delete", "one", "--yes").exit_code == 0
    assert not (runs / "one" / "adapter").exists() and (runs / "one" / "manifest.json").exists()


def test_a_second_copy_may_be_deleted(runs: Path):
    import shutil

    shutil.copytree(runs / "one" / "adapter", runs / "copy")
    assert adapters(runs, "delete", "copy").exit_code == 0
    assert (runs / "one" / "adapter").is_dir() and not (runs / "copy").exists()


def test_chat_switches_merges_and_unloads(runs: Path):
    asked = "pig\n/clear\n"
    lines = (
        f"{asked}/use {runs / 'two'}\n{asked}/base\n{asked}/adapters\n/use one\n{asked}/merge\n{asked}/use two\n/unmerge\n"
        f"{asked}/unload\n{asked}/adapters\n/merge\n/use nothing\n"
    )
    result = run("chat", str(runs / "one"), "--max-new-tokens", "6", "--device", "cpu", stdin=lines)
    assert result.exit_code == 0, result.output
    one, two, base, again, merged, unmerged, unloaded = [line.strip() for line in result.stdout.splitlines()]
    assert one == again == merged == unmerged and base == unloaded
    assert len({one, two, base}) == 3
    for said in (
        "two answers", "* base", "one merged into 14 layers", "unmerge it first", "restored bit for bit",
        "every adapter is gone", "none has changed", "no adapter is in memory", "bare model: it has no adapter",
    ):  # fmt: skip
        assert said in result.stderr
