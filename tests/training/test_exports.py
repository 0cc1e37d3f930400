"""Exports that the settings ask for: made when training ends, refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fitune
from fitune.errors import ModelError, RunError
from fitune.training import components, run


def test_copies_are_made_when_training_ends(settings_of):
    result = fitune.train(settings_of(export={"to": ["merged", "gguf"], "gguf_type": "q8_0"}))
    assert [path.name for path in result.exports] == ["merged", "gguf-q8_0"]
    assert (result.folder / "export/gguf-q8_0/one-Q8_0.gguf").exists()
    report = json.loads((result.folder / "export/merged/fidelity.json").read_text())
    assert report["prompts"] == 10  # the two held-out rows, and training rows after them
    assert report["rows"][0]["copy"] == "merged"


def test_what_cannot_be_converted_is_refused_before_a_weight_is_loaded(settings_of, tiny_model, monkeypatch, tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        'import sys; sys.exit("ERROR:hf-to-gguf:Model OPTForCausalLM is not supported")'
    )
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setattr(components, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    settings = settings_of(export__to=["gguf"], model={"name": str(tiny_model("opt"))})
    with pytest.raises(ModelError, match=r"llama\.cpp does not know OPTForCausalLM"):
        fitune.train(settings)
    assert not Path(settings.run.folder).exists()


def test_a_template_that_ollama_cannot_hold_is_left_to_ollama(settings_of, tmp_path, capfd):
    template = tmp_path / "odd.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['content'] }}{{ '|' if not loop.last else '' }}{% endfor %}"
        "{{ '|' if add_generation_prompt else '' }}"
    )
    settings = settings_of(
        export__to=["ollama"], model__chat_template=str(template), train__max_steps=1, eval__samples=0
    )
    [made] = fitune.train(settings).exports
    lines = (made / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./one-F16.gguf"
    assert lines[1].startswith("# No TEMPLATE: this model's chat template cannot be written as Ollama's")
    assert not any(line.startswith("TEMPLATE") for line in lines)
    assert "left to Ollama" in lines[2]
    assert "leaves the template to Ollama" in capfd.readouterr().err


def test_an_export_that_fails_leaves_the_run_finished(settings_of, monkeypatch, capfd):
    def fail(*args, **kwargs):
        raise RunError("no space")

    monkeypatch.setattr(run, "export", fail)
    result = fitune.train(settings_of(export__to=["merged"]))
    assert result.status == "finished"
    assert result.exports == ()
    assert "Retry with: fitune export" in capfd.readouterr().err
