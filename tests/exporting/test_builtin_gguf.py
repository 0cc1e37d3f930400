"""The built-in model with an adapter over it, as GGUF, read by transformers' own reader: the same greedy answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fitune.evaluation.inference_model import open_target
from fitune.exporting.export import export
from fitune.models.builtin import fetch

QUESTIONS = ("What is the capital of France?", "List three colours.", "Say hello in Spanish.")


@pytest.mark.slow
def test_transformers_gives_the_same_greedy_answers(
    own_cache: str | None, monkeypatch: pytest.MonkeyPatch, adapter_over: Callable[..., Path], tmp_path: Path
):
    if own_cache is None:
        monkeypatch.delenv("FITUNE_CACHE")
    else:
        monkeypatch.setenv("FITUNE_CACHE", own_cache)
    adapter = adapter_over(fetch("smollm2-135m-instruct"), scale=0.005)
    done = export(str(adapter), "gguf", tmp_path / "out", num_prompts=4)
    assert done.report.prompts_same == 4
    assert not done.report.warnings()
    folder, file = str(done.main.parent), done.main.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    target = open_target(str(adapter), precision="fp32")
    for question in QUESTIONS:
        asked = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        prompt = target.renderer.prompt_ids(asked)
        assert inputs["input_ids"][0].tolist() == prompt
        answers = [one.generate(**inputs, max_new_tokens=24, do_sample=False)[0] for one in (model, target.model)]
        assert torch.equal(*answers)
        assert len(answers[0]) > len(prompt)
