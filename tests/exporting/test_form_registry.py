"""The registries of export forms and GGUF types: their facts hold, and a new form needs a line there and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

import fitune
from fitune.cli.pages.doc_tables import export_forms, gguf_types
from fitune.config import load_settings
from fitune.config.fields import all_fields
from fitune.evaluation.inference_model import open_target
from fitune.exporting.fidelity import THRESHOLDS
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.forms.export_form import Exportable, ExportForm, ExportJob, Reopened
from fitune.exporting.gguf.gguf_types import GGUF_TYPES


@pytest.mark.parametrize("kind", GGUF_TYPES.values(), ids=list(GGUF_TYPES))
def test_a_gguf_type_is_one_of_the_gguf_packages(kind):
    stored, file_type = gguf.GGMLQuantizationType[kind.layers], gguf.LlamaFileType[kind.file_type]
    assert file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_") == kind.name.upper()
    assert kind.name.upper().startswith(stored.name)
    block, size = gguf.GGML_QUANT_SIZES[stored]
    assert kind.bits <= 8 * size / block < kind.bits + 2  # a scale, and for q4_1 a minimum, of 16 bits a block
    assert kind.packed == (block > 1)
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.ends]][1] > 0
    assert kind.loss in THRESHOLDS


@pytest.mark.parametrize("form", EXPORT_FORMS.values(), ids=list(EXPORT_FORMS))
def test_what_a_form_loses_has_a_threshold(form: ExportForm):
    for kind in GGUF_TYPES:
        assert form.loss_of(kind) in THRESHOLDS
        assert form.variant(kind) == (f"{form.name}-{kind}" if form.takes_gguf_type else form.name)


def refuse_mistral(model: Exportable) -> None:
    if model.config.model_type == "mistral":
        raise fitune.ModelError("halves hold no Mistral")


def write_halves(job: ExportJob) -> Path:
    path = job.folder / f"{job.title}.halves"
    save_file({name: weight.half().contiguous() for name, weight in job.target.model.named_parameters()}, path)
    return path


def reopen_halves(job: ExportJob, main: Path, precision: str, device: str) -> Reopened:
    held = load_file(main)
    with torch.no_grad():
        for name, weight in job.target.model.named_parameters():
            weight.copy_(held[name])
    return Reopened(job.target.model, None, ("token ids were not compared",))


HALVES = ExportForm(
    name="halves",
    words="fp16 tensors alone",
    contents="`NAME.halves`: the weights",
    refuse=refuse_mistral,
    write=write_halves,
    reopen=reopen_halves,
)


@pytest.fixture
def with_halves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The line that a new form needs. Names of settings are read once, before the line in a test, after it in life."""
    monkeypatch.setitem(EXPORT_FORMS, "halves", HALVES)
    all_fields.cache_clear()
    yield
    monkeypatch.undo()
    all_fields.cache_clear()


@pytest.mark.usefixtures("with_halves")
def test_a_new_form_is_merged_written_reopened_and_measured(llama_adapter: Path, tmp_path: Path):
    done = fitune.export(str(llama_adapter), "halves", tmp_path / "out", num_prompts=3)
    assert done.main == tmp_path / "out/tiny-adapter.halves" and (tmp_path / "out/fidelity.json").exists()
    assert [row.copy for row in done.report.rows] == ["merged", "exported, halves"]
    assert 0 < done.report.rows[1].largest < 0.01  # fp16 has eleven bits
    assert done.report.notes == ("token ids were not compared",)
    model = open_target(str(llama_adapter), precision="fp32").model.merge_and_unload()
    wanted = {name: weight.half() for name, weight in model.named_parameters()}
    held = load_file(done.main)
    assert held.keys() == wanted.keys()
    assert all(torch.allclose(held[name], wanted[name], atol=1e-3) for name in wanted)


@pytest.mark.usefixtures("with_halves")
def test_a_new_form_refuses_before_a_weight_is_read(tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fitune.exporting.export.open_target", None)
    with pytest.raises(fitune.ModelError, match="halves hold no Mistral"):
        fitune.export(str(tiny_model("mistral", sliding_window=None)), "halves", tmp_path / "out")


@pytest.mark.usefixtures("with_halves")
def test_a_new_form_is_in_the_settings_their_rules_and_the_documents():
    assert load_settings(None, {"export.to": "halves"}).export.to == ["halves"]
    with pytest.raises(
        fitune.SettingsError, match=r'"halfs" \(did you mean "halves"\?\); use names out of .*ollama, hal'
    ):
        load_settings(None, {"export.to": "halfs"})
    with pytest.raises(fitune.SettingsError, match=r"asks for a merge, and lora\.init is loftq"):
        load_settings(None, {"export.to": "halves", "lora.init": "loftq", "model.quantization": "nf4"})
    with pytest.raises(fitune.SettingsError, match="has neither gguf nor ollama"):
        load_settings(None, {"export.to": "halves", "export.gguf_type": "q8_0"})
    assert "| halves | `NAME.halves`: the weights |" in list(export_forms())


def test_without_the_line_the_form_is_unknown(llama_adapter: Path, tmp_path: Path):
    with pytest.raises(fitune.ModelError, match='no form "halves"; use one of adapter, merged, gguf, ollama'):
        fitune.export(str(llama_adapter), "halves", tmp_path / "out")
    with pytest.raises(fitune.ModelError, match='no GGUF type "q9"; use one of f32, f16'):
        fitune.export(str(llama_adapter), "gguf", tmp_path / "out", gguf_type="q9")


def test_the_documents_have_a_row_a_type():
    assert "| `q4_1` | 5 bits | 8.5 bits | fitune or llama.cpp |" in "\n".join(gguf_types())
