"""Families that people fine-tune, as tiny random models: through a run and a merge, and packs in which no row leaks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import EXPERTS_ADAPTED, PACKED, TRIED, USED, make_family
from transformers import AutoModelForImageTextToText

import fitune
from fitune.errors import ModelError
from fitune.models.load_config import load_config
from fitune.models.source import resolve
from fitune.models.towers import auto_class
from fitune.trainers.packing_support import _others_changed, _packed_loss, _sample, choose_packing

WITHOUT_EXPERTS = pytest.mark.xfail(
    find_spec("fitune.models.mixture") is None, reason="adapters on experts do not open again", strict=True
)
WORDS = ("cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee")


def through(family: str, folder: Path, **changed: Any) -> tuple[Path, Path]:
    """A tiny model of the family trained for two steps; (the base's folder, the run's)."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {word}", "completion": word[::-1]}) + "\n" for word in WORDS))
    model = make_family(folder / family, family, **changed.pop("config", {}))
    settings: dict[str, Any] = {
        "fit": "off",
        "model": {"name": str(model), "precision": "fp32", "device": "cpu"},
        "data": {"train": str(data), "eval_share": 0.2},
        "train": {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-2},
        "eval": {"samples": 1, "max_new_tokens": 2},
        "run": {"folder": str(folder / "runs"), "name": "one"},
        **changed,
    }
    return model, fitune.train(fitune.Settings(**settings)).folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=WITHOUT_EXPERTS if name in EXPERTS_ADAPTED else ()) for name in USED]
)
def test_the_most_used_families_train_open_again_and_merge(family: str, tmp_path: Path) -> None:
    model, run = through(family, tmp_path)
    adapter = weights_in(run / "adapter")
    assert any(value.any() for name, value in adapter.items() if ".lora_B" in name)
    done = fitune.export(str(run), "merged", num_prompts=2, device="cpu")
    report = done.report.to_dict()
    assert report["prompts_same"] == report["prompts"]
    assert max(row["divergence"] for row in report["rows"]) < 1e-3
    assert weights_in(model).keys() == weights_in(done.folder).keys()


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_vl", "qwen3_5"])
def test_a_vision_tower_is_kept_and_the_whole_model_opens_again(family: str, tmp_path: Path) -> None:
    model, run = through(family, tmp_path)
    whole = load_config(resolve(str(model)))
    assert auto_class(whole) is AutoModelForImageTextToText
    assert not any("vis" in name for name in weights_in(run / "adapter"))
    (model / "preprocessor_config.json").write_text('{"image_processor_type": "SomeImageProcessor"}')
    done = fitune.export(str(run), "merged", num_prompts=1, device="cpu")
    base, merged = weights_in(model), weights_in(done.folder)
    assert base.keys() == merged.keys()
    tower = {name for name in base if "vis" in name}
    assert tower and all(torch.equal(base[name].bfloat16(), merged[name]) for name in tower)
    assert any(not torch.equal(base[name].bfloat16(), merged[name]) for name in base.keys() - tower)
    assert (done.folder / "preprocessor_config.json").read_text() == (model / "preprocessor_config.json").read_text()
    again, report = AutoModelForImageTextToText.from_pretrained(done.folder, output_loading_info=True)
    assert (
        not report["missing_keys"]
        and type(again).__name__ == json.loads((model / "config.json").read_text())["architectures"][0]
    )


def test_full_tuning_leaves_the_tower_alone(tmp_path: Path) -> None:
    train = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "tuning": "full"}
    model, run = through("qwen2_vl", tmp_path, train=train)
    base, tuned = weights_in(model), weights_in(run / "model")
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed and not any("visual" in name for name in changed)


def test_a_checkpoint_of_the_text_model_alone_stays_one(tmp_path: Path) -> None:
    config = load_config(resolve(str(make_family(tmp_path / "text", "qwen3_5_text"))))
    assert auto_class(config).__name__ == "AutoModelForCausalLM"


@pytest.mark.parametrize("family", ["mamba", "falcon_h1", "nemotron_h"])
def test_lora_leaves_out_what_peft_refuses(family: str, tmp_path: Path) -> None:
    _, run = through(family, tmp_path)
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in weights_in(run / "adapter")}
    assert "in_proj" in adapted and "out_proj" not in adapted
    with pytest.raises(ModelError, match=r'lora.targets has "out_proj", which this model does not have'):
        through(family, tmp_path, lora={"targets": ["out_proj"]}, run={"folder": str(tmp_path / "runs"), "name": "two"})


def test_a_hybrid_without_attention_answers(tmp_path: Path) -> None:
    _, run = through("granitemoehybrid", tmp_path, config={"layer_types": ["linear_attention"] * 2})
    assert (run / "adapter").is_dir()


# ---- packs


class Row:
    """Token ids, all of them trained but the first four."""

    def __init__(self, ids: list[int], number: int):
        self.input_ids, self.row_number = tuple(ids), number
        self.trained = tuple(at >= 4 for at in range(len(ids)))


def rows_of(count: int) -> list[Row]:
    """Rows of which half begin alike."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for number in range(count):
        tail = torch.randint(5, 370, (6 + number % 4,), generator=draw).tolist()
        made.append(Row([5, 6, 7, 8, 9, *tail] if number % 2 else tail, number))
    return made


def tiny(family: str, folder: Path) -> Any:
    """The family's model as it is trained, its weights scaled up: near their random start rounding hides a leak."""
    config = load_config(resolve(str(make_family(folder / family, family))))
    model = auto_class(config).from_pretrained(folder / family).train()
    return model


def scaled_up(model: Any) -> Any:
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(4)
    return model


@pytest.mark.parametrize("family", PACKED)
def test_no_row_of_a_pack_feels_another(family: str, tmp_path: Path) -> None:
    model, rows = tiny(family, tmp_path), rows_of(6)
    packing = choose_packing(model, rows, "auto", micro_batch_rows=4)
    assert packing.mode == "tree", packing.notes
    scaled_up(model).eval()
    sample = _sample(rows)
    for share in (True, False):
        with torch.no_grad():
            for which in range(len(sample)):
                alone = _packed_loss(model, sample, which, share, model.device)
                beside = _packed_loss(model, _others_changed(sample, which), which, share, model.device)
                assert abs(alone - beside) <= 1e-6 * max(1.0, alone), (family, share, which)


def test_the_sheet_tries_sixty_families_and_those_that_are_used() -> None:
    assert len(set(TRIED)) == len(TRIED) >= 60
    assert set(USED) <= set(TRIED) and set(PACKED) <= set(TRIED) and set(TRIED) > EXPERTS_ADAPTED
