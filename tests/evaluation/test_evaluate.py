"""A data file measured: the loss equals a plain one, the rows come with their scores; targets are opened or refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.data.read.sources import DataOptions
from fitune.errors import FituneError, ModelError
from fitune.evaluation.evaluate import evaluate
from fitune.evaluation.inference_model import open_target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    pairs = [("pig", "igpay"), ("eat", "eatway"), ("the string", "ethay ingstray")]
    path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
    return str(path)


def test_the_loss_is_that_of_a_plain_forward_over_the_answers(tiny_llama, rows: str):
    target = open_target(str(tiny_llama), device="cpu", precision="fp32")
    found = evaluate(target, rows, DataOptions(), max_new_tokens=4, batch=2)
    total = count = 0.0
    for pair in map(json.loads, Path(rows).read_text().splitlines()):
        prompt = target.renderer.prompt_ids([{"role": "user", "content": pair["prompt"]}])
        answer_ids = target.renderer.tokenizer(pair["completion"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer_ids])
        with torch.no_grad():
            logits = target.model(ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(answer_ids), reduction="sum").item()
        count += len(answer_ids)
    assert found.metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert [row["wanted"] for row in found.rows] == ["igpay", "eatway", "ethay ingstray"]
    assert json.loads(json.dumps(found.to_dict()))["metrics"]["rows"] == 3


def test_an_adapter_folder_opens_with_its_base_and_can_be_switched_off(tiny_llama, tmp_path: Path, rows: str):
    source = resolve(str(tiny_llama))
    tokenizer = load_tokenizer(source)
    template = resolve_template(tokenizer)
    base = load_base(source, tokenizer, template, detect("cpu"), Precision(torch.float32, "test"))
    facts = base_facts(base)
    adapted = attach(base.model, lora_config(base.model, init="debug"))
    save_adapter(adapted, tokenizer, template, tmp_path / "adapter", facts)
    target = open_target(str(tmp_path / "adapter"), device="cpu", precision="fp32")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.tensor([target.renderer.prompt_ids([{"role": "user", "content": "pig"}])])
    with torch.no_grad():
        assert torch.equal(target.model(ids).logits, adapted.eval()(ids).logits)
        with target.without_adapter():
            assert torch.equal(target.model(ids).logits, plain(ids).logits)
    with_it = evaluate(target, rows, DataOptions(), max_new_tokens=2).metrics["loss"]
    with target.without_adapter():
        assert evaluate(target, rows, DataOptions(), max_new_tokens=2).metrics["loss"] != with_it


def test_names_that_are_nothing_are_refused_with_a_hint(tmp_path: Path):
    (tmp_path / "runs" / "pig-latin").mkdir(parents=True)
    with pytest.raises(FituneError):
        open_target("pig-latn", runs_folder=str(tmp_path / "runs"))
    with pytest.raises(ModelError, match="there is no run or model"):
        open_target(str(tmp_path / "nothing" / "here"))
