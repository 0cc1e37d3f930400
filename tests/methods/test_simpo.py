"""SimPO: the loss by hand and as TRL computes it, its gradients, a run that learns, resume."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from fitune.config.settings_loader import load_settings
from fitune.errors import SettingsError
from fitune.methods.simpo.trainer import SimpoTrainer, simpo_loss
from fitune.ops.token_logprobs import make_row_batch
from fitune.ops.tree_attention import use_tree_attention
from fitune.runs.run_folder import read_rows
from fitune.trainers.preference import sides
from fitune.training.run import train


def test_the_loss_by_hand():
    """Rewards −1 and −3 under a margin of 0.5: −log σ(1.5)."""
    loss = simpo_loss(torch.tensor([-1.0]), torch.tensor([-3.0]), 0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)))


@pytest.mark.parametrize("mode", ["tree", "rows", "off"])
def test_the_loss_and_its_gradients_are_trls(tiny, tiny_llama, tmp_path, make_pairs, padded, away, gradients_of, mode):
    pairs, model = make_pairs(5), tiny.llama()
    arguments = CPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=5, loss_type="simpo", cpo_alpha=0.0, beta=1.5,
        simpo_gamma=0.7, use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False,
    )  # fmt: skip
    unused = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    theirs = CPOTrainer(
        model, args=arguments, train_dataset=unused, processing_class=AutoTokenizer.from_pretrained(tiny_llama)
    )
    away(model)
    wanted, metrics = theirs.get_batch_loss_metrics(model, padded(pairs))
    slopes = gradients_of(model, wanted)

    if mode != "off":
        use_tree_attention(model.get_base_model())
    trainer = SimpleNamespace(beta=1.5, gamma=0.7)
    losses, measured = SimpoTrainer.pair_losses(trainer, model, make_row_batch(sides(pairs), mode), pairs)
    assert losses.mean().item() == pytest.approx(wanted.item(), rel=1e-6)
    assert measured["margin"].mean().item() == pytest.approx(metrics["rewards/margins"], rel=1e-5)
    assert measured["accuracy"].mean().item() == pytest.approx(metrics["rewards/accuracies"])
    for name, slope in gradients_of(model, losses.mean()).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-4, atol=1e-6, msg=name)


def run_of(settings_of, pairs_file, name, **changed):
    common = {"data__train": str(pairs_file), "train__batch_size": 4, "train__max_steps": 6, "eval__samples": 2}
    return settings_of(method="simpo", run__name=name, **{**common, **changed})


def test_a_run_learns_to_prefer(settings_of, pairs_file):
    """Measured on the pairs that it learns from."""
    seen = {"data__eval": str(pairs_file), "data__eval_share": 0.0}
    result = train(run_of(settings_of, pairs_file, "learns", train__max_steps=20, **seen))
    assert result.after["loss"] < 0.5 * result.before["loss"]
    assert result.after["margin"] > result.before["margin"] + 1
    assert result.after["accuracy"] == 1 and "exact_match" in result.after


def test_layouts_give_the_same_losses(settings_of, pairs_file):
    losses = []
    for name, changed in {"packs": {}, "padded": {"data__packing": "off", "train__micro_batch_size": 2}}.items():
        folder = train(run_of(settings_of, pairs_file, name, train__max_steps=4, **changed)).folder
        losses.append([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, pairs_file, cut_and_resumed):
    assert cut_and_resumed(train(run_of(settings_of, pairs_file, "whole", run__checkpoint_steps=2)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"simpo.beta": "0"}, "above 0"),
        ({"simpo.gamma": "-1"}, "0 or more"),
        ({"data.loss_on": "all"}, "whole answers"),
    ],
)
def test_settings_that_do_not_fit(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(None, {"method": "simpo", **given})
