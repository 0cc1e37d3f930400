"""DPO: the losses by hand and as TRL computes them, the reference, a run that learns, resume."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fitune.config.settings_loader import load_settings
from fitune.errors import SettingsError
from fitune.methods.dpo.trainer import DpoTrainer, dpo_loss
from fitune.runs.run_folder import read_rows
from fitune.trainers.sampler import rows_met
from fitune.training.run import train


def test_losses_by_hand():
    better, worse, tokens = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([4, 2])
    h = 0.3  # 0.1 · 3
    right, wrong = math.log(1 + math.exp(-h)), math.log(1 + math.exp(h))
    assert dpo_loss(better, worse, tokens, "sigmoid", 0.1).item() == pytest.approx(right)
    assert dpo_loss(better, worse, tokens, "sigmoid", 0.1, 0.2).item() == pytest.approx(0.8 * right + 0.2 * wrong)
    robust = (0.8 * right - 0.2 * wrong) / 0.6
    assert dpo_loss(better, worse, tokens, "robust", 0.1, 0.2).item() == pytest.approx(robust)
    assert dpo_loss(better, worse, tokens, "ipo", 0.1).item() == pytest.approx((2 / 4 + 1 / 2 - 5) ** 2)


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("robust", 0.1), ("ipo", 0.0)])
@pytest.mark.parametrize("mode", ["tree", "off"])
def test_the_loss_is_that_of_trl_on_the_same_batch(tiny, tiny_llama, tmp_path, make_pairs, away, loss, smoothing, mode):
    from fitune.ops.tree_attention import use_tree_attention

    pairs, model = make_pairs(5), tiny.llama()
    arguments = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=5, beta=0.2, loss_type=[loss], label_smoothing=smoothing,
        use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False,
    )  # fmt: skip
    unused = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    theirs = DPOTrainer(
        model, args=arguments, train_dataset=unused, processing_class=AutoTokenizer.from_pretrained(tiny_llama)
    )
    away(model)  # from the reference, which TRL has copied by now and which is the bare base
    columns = {
        "prompt_ids": [list(pair.chosen.input_ids[:3]) for pair in pairs],
        "chosen_ids": [list(pair.chosen.input_ids[3:]) for pair in pairs],
        "rejected_ids": [list(pair.rejected.input_ids[3:]) for pair in pairs],
    }
    batch = DataCollatorForPreference(pad_token_id=0)([dict(zip(columns, one)) for one in zip(*columns.values())])  # noqa: B905
    model.eval()
    with torch.no_grad():
        wanted = theirs.compute_loss(model, batch).item()

    if mode != "off":
        use_tree_attention(model.get_base_model())
    trainer = DpoTrainer.__new__(DpoTrainer)
    trainer.loss, trainer.beta, trainer.label_smoothing, trainer.reference = loss, 0.2, smoothing, {}
    trainer.sft_weight = 0.0
    from fitune.ops.token_logprobs import make_row_batch
    from fitune.trainers.preference import sides

    with torch.no_grad():
        losses, measured = trainer.pair_losses(model, make_row_batch(sides(pairs), mode), pairs)
    assert losses.mean().item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert measured["margin"].abs().max() > 0.01
    trainer.sft_weight = 0.5
    with torch.no_grad():
        more, _ = trainer.pair_losses(model, make_row_batch(sides(pairs), mode), pairs)
    tokens = torch.tensor([pair.chosen.num_trained for pair in pairs])
    torch.testing.assert_close(more - losses, -0.5 * measured["logprob_chosen"] / tokens)


def test_pairs_that_a_short_run_meets(make_pairs):
    pairs = make_pairs(10)
    met = rows_met(pairs, steps=2, batch_size=3, seed=7)
    assert len(met) == 6 and len({pair.row_number for pair in met}) == 6
    assert rows_met(pairs, steps=4, batch_size=3, seed=7) == pairs


def run_of(settings_of, pairs_file, name, **changed):
    common = {"data__train": str(pairs_file), "train__batch_size": 4, "train__max_steps": 6, "eval__samples": 2}
    return settings_of(method="dpo", run__name=name, **{**common, **changed})


def test_a_run_learns_to_prefer_and_starts_at_the_reference(settings_of, pairs_file):
    result = train(run_of(settings_of, pairs_file, "learns", train__max_steps=20))
    assert result.before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.before["accuracy"] == pytest.approx(0.5)
    assert result.after["loss"] < 0.65 and result.after["margin"] > 0.1
    assert "exact_match" in result.after
    first = next(row for row in read_rows(result.folder / "metrics.jsonl") if row["kind"] == "train")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5) and "logprob_chosen" in first


def test_live_and_precomputed_references_and_layouts_give_the_same_losses(settings_of, pairs_file):
    losses = []
    for name, changed in {
        "precomputed": {},
        "live": {"dpo": {"reference": "live"}},
        "padded": {"data__packing": "off", "train__micro_batch_size": 2},
    }.items():
        folder = train(run_of(settings_of, pairs_file, name, train__max_steps=4, **changed)).folder
        losses.append([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert losses[0] == pytest.approx(losses[2], abs=2e-5)


def test_full_tuning_keeps_its_reference(settings_of, pairs_file):
    result = train(run_of(settings_of, pairs_file, "full", train__tuning="full", train__learning_rate=1e-3))
    assert result.before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.after["margin"] > 0


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, pairs_file, cut_and_resumed):
    assert cut_and_resumed(train(run_of(settings_of, pairs_file, "whole", run__checkpoint_steps=2)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dpo.loss": "ipo", "dpo.label_smoothing": "0.1"}, "ipo does not use it"),
        ({"dpo.loss": "robust"}, "corrects for wrong labels"),
        ({"dpo.reference": "live", "train.tuning": "full"}, "no adapter to switch off"),
        ({"dpo.reference": "live", "lora.init": "pissa"}, "is not the one that training began with"),
        ({"dpo.beta": "0"}, "above 0"),
    ],
)
def test_settings_that_do_not_fit(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(None, {"method": "dpo", **given})
