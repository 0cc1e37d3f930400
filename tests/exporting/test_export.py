"""Every form of an export, read back: by plain transformers and PEFT where they can, against the adapter's own logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fitune.errors import ModelError, RunError
from fitune.evaluation.inference_model import open_target
from fitune.exporting.export import export
from fitune.exporting.new_folder import new_folder

END = "<|endoftext|>"
BARE: dict[str, Any] = {"specials": {"bos_token": END, "eos_token": END, "unk_token": END}, "template": None}


def ids_BS() -> torch.Tensor:
    return torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids_BS()).logits


def test_merged_opens_in_plain_transformers(llama_adapter: Path, tmp_path: Path):
    done = export(str(llama_adapter), "merged", tmp_path / "merged", num_prompts=3)
    wanted = logits(open_target(str(llama_adapter), precision="fp32").model)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16  # the base is fp32
    assert (logits(model) - wanted).abs().max() < 0.05  # 8 bits of bf16, two layers
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(llama_adapter).chat_template
    assert (tmp_path / "merged/generation_config.json").exists()
    assert done.report.prompts_same == 3
    names = [row.copy for row in done.report.rows]
    assert names == ["merged", "exported, merged"]
    assert done.report.rows[0].largest < 1e-4  # fp32: sums in another order
    assert json.loads((tmp_path / "merged/fidelity.json").read_text())["rows"][0]["copy"] == "merged"


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_1", "q4_0"])
def test_gguf_opens_in_plain_transformers(llama_adapter: Path, tmp_path: Path, kind: str):
    done = export(str(llama_adapter), "gguf", tmp_path / "out", gguf_type=kind, num_prompts=3)
    wanted = logits(open_target(str(llama_adapter), precision="fp32").model)
    folder, file = str(done.main.parent), done.main.name
    assert file == f"tiny-adapter-{kind.upper()}.gguf"
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    largest = {"f16": 0.005, "bf16": 0.05, "q8_0": 0.1, "q4_1": 1.0, "q4_0": 1.0}[kind]
    assert (logits(model) - wanted).abs().max() < largest
    tokenizer, own = AutoTokenizer.from_pretrained(folder, gguf_file=file), AutoTokenizer.from_pretrained(llama_adapter)
    assert tokenizer.chat_template == own.chat_template
    assert done.report.prompts_same == 3


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
        ("mistral", {"sliding_window": None, "spare_rows": 7}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 128}),
        ("qwen3", {}),
        ("gpt_neox", {**BARE, "spare_rows": 20}),
        ("gpt_neox", {**BARE, "use_parallel_residual": False, "spare_rows": 20}),
    ],
    ids=["llama-biases", "llama3-rope", "mistral", "qwen2", "qwen3-128", "qwen3", "pythia", "pythia-sequential"],
)  # fmt: skip
def test_families_to_gguf_and_back(
    tiny_model: Callable[..., Path], adapter_over: Callable[..., Path], tmp_path: Path, family: str, options: Any
):
    adapter = adapter_over(tiny_model(family, **options))
    done = export(str(adapter), "gguf", tmp_path / "out", num_prompts=2)
    exported = done.report.rows[-1]
    assert exported.largest < 0.01  # F16 has eleven bits
    assert exported.tokens_same == 1
    assert done.report.prompts_same == 2
    assert not done.report.warnings()
    assert "llama.cpp" in done.report.notes[0]


def test_without_llama_cpp_transformers_reads_back_what_it_can(
    tiny_model: Callable[..., Path], adapter_over: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fitune.exporting.gguf.gguf_file.can_ask", lambda: False)
    read = export(str(adapter_over(tiny_model("llama"))), "gguf", tmp_path / "read", num_prompts=2).report
    assert read.prompts_same == 2
    assert read.rows[-1].copy == "exported, f16"
    assert any("fitune[gguf]" in note for note in read.notes)
    unread = export(str(adapter_over(tiny_model("qwen3"))), "gguf", tmp_path / "unread", num_prompts=2).report
    assert [row.copy for row in unread.rows] == ["merged"]
    assert unread.prompts_same is None
    assert "was not read back" in unread.notes[0]


WITHOUT_FITUNE = """
import sys
sys.modules["fitune"] = None  # an import would fail
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
base, adapter, ids, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
with torch.no_grad():
    save_file({"logits": model(input_ids=torch.tensor([[int(i) for i in ids.split(",")]])).logits}, out)
"""


@pytest.mark.slow
def test_adapter_opens_in_plain_peft_without_fitune_in_another_process(
    llama_adapter: Path, tiny_llama: Path, tmp_path: Path
):
    done = export(str(llama_adapter), "adapter", tmp_path / "copy", num_prompts=2)
    assert done.report.rows[0].largest == 0
    ids, found = list(range(5, 25)), tmp_path / "logits.safetensors"
    model = open_target(str(llama_adapter), precision="fp32").model.eval()
    before, _ = torch.get_num_threads(), torch.set_num_threads(1)  # as in the other process: sums in the same order
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits
    torch.set_num_threads(before)
    words = [str(tiny_llama), str(tmp_path / "copy"), ",".join(map(str, ids)), str(found)]
    subprocess.run([sys.executable, "-c", WITHOUT_FITUNE, *words], check=True, cwd=tmp_path)
    assert torch.equal(load_file(found)["logits"], wanted)


@pytest.mark.parametrize(
    "options",
    [{"dora": True}, {"train_norms": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"init": "pissa"}],
    ids=["dora", "norms", "head", "bias", "pissa"],
)
def test_what_was_trained_in_full_is_merged_too(
    tiny_model: Callable[..., Path], adapter_over: Callable[..., Path], tmp_path: Path, options: Any
):
    base = tiny_model("llama", attention_bias=True, tie_word_embeddings=False)
    adapter = adapter_over(base, **options)
    assert export(str(adapter), "merged", tmp_path / "out", num_prompts=2).report.rows[0].largest < 1e-4
    wanted = logits(open_target(str(adapter), precision="fp32").model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (logits(merged) - wanted).abs().max() < 0.05


def test_a_head_trained_apart_from_its_embedding_stays_apart(
    tiny_gpt_neox: Path, adapter_over: Callable[..., Path], tmp_path: Path
):
    """Pythia with ChatML: rows of new tokens trained in embedding and head."""
    adapter = adapter_over(tiny_gpt_neox)
    done = export(str(adapter), "merged", tmp_path / "out", num_prompts=2)
    assert not done.report.warnings()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_after_a_quantized_training_the_sixteen_bit_base_is_merged(llama_adapter: Path, tmp_path: Path):
    adapter = tmp_path / "qlora"
    adapter.mkdir()
    for file in llama_adapter.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    facts = json.loads((adapter / "fitune.json").read_text())
    facts["quantization"] = {"kind": "nf4", "double_quant": False, "unquantized": []}
    (adapter / "fitune.json").write_text(json.dumps(facts))
    done = export(str(adapter), "merged", tmp_path / "out", num_prompts=2)
    assert [row.copy for row in done.report.rows] == ["adapter over the 16-bit base", "merged", "exported, merged"]
    assert "nf4" in done.report.reference
    assert done.report.rows[0].largest > 0  # what the quantization had changed
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    dense = logits(open_target(str(llama_adapter), precision="fp32").model)
    assert (logits(merged) - dense).abs().max() < 0.05


def test_nothing_is_written_over_and_nothing_is_left_behind(
    llama_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(RunError, match="already exists"):
        export(str(llama_adapter), "merged", taken)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fitune.exporting.gguf.gguf_file.write_gguf", fail)
    with pytest.raises(RunError, match="no space is left"):
        export(str(llama_adapter), "gguf", tmp_path / "out", num_prompts=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_space_is_checked_before_writing(llama_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunError, match="no space for the export"):
        export(str(llama_adapter), "merged", tmp_path / "out", num_prompts=1)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_no_folder(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_gone_is_named_with_the_way_out(llama_adapter: Path, tiny_llama: Path, tmp_path: Path):
    adapter = tmp_path / "moved"
    adapter.mkdir()
    for file in llama_adapter.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    facts = json.loads((adapter / "fitune.json").read_text())
    facts["base"]["name"] = "/nowhere/base"
    (adapter / "fitune.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match=r"/nowhere/base.*--base"):
        export(str(adapter), "merged", tmp_path / "out")
    done = export(str(adapter), "merged", tmp_path / "out", base_name=str(tiny_llama), num_prompts=1)
    assert done.folder.exists()


def test_a_whole_model_has_no_adapter_to_export(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="has no adapter"):
        export(str(tiny_llama), "adapter", tmp_path / "out")
