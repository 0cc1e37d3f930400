"""ORPO: the loss by hand and as TRL computes it, its gradients, a run that learns, resume."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from fitune.config.settings_loader import load_settings
from fitune.errors import SettingsError
from fitune.methods.orpo.trainer import OrpoTrainer, answer_mask, log_odds
from fitune.ops.token_logprobs import make_row_batch
from fitune.ops.tree_attention import use_tree_attention
from fitune.runs.run_folder import read_rows
from fitune.training.run import train


def test_log_odds_by_hand():
    """−ln p = 1 and 2: odds 0.582 and 0.157, whose logarithms differ by 1.3133."""
    odds = log_odds(torch.tensor([-1.0, -2.0, -50.0]))
    assert odds[0].item() == pytest.approx(math.log(math.exp(-1) / (1 - math.exp(-1))))
    assert (odds[0] - odds[1]).item() == pytest.approx(1.3133, abs=1e-4)
    assert odds[2].item() == pytest.approx(-50.0)


def test_an_answer_that_is_certain_has_finite_odds_and_gradients():
    logp = torch.tensor([0.0, -1e-9, -1e-4], requires_grad=True)
    odds = log_odds(logp)
    odds.sum().backward()
    assert torch.isfinite(odds).all() and torch.isfinite(logp.grad).all()
    assert odds[2].item() == pytest.approx(math.log(1e4), rel=1e-3)


def trainer_of(weight, sft_on):
    trainer = OrpoTrainer.__new__(OrpoTrainer)
    trainer.weight, trainer.sft_on = weight, sft_on
    return trainer


@pytest.mark.parametrize("mode", ["tree", "rows", "off"])
def test_the_loss_and_its_gradients_are_trls(tiny, tiny_llama, tmp_path, make_pairs, padded, away, gradients_of, mode):
    """TRL's supervised loss takes the prompts in, so sft_on is all."""
    pairs, model = make_pairs(5), tiny.llama()
    arguments = ORPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=5, beta=0.4, use_cpu=True, bf16=False,
        report_to="none", activation_checkpointing=False,
    )  # fmt: skip
    unused = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    theirs = ORPOTrainer(
        model, args=arguments, train_dataset=unused, processing_class=AutoTokenizer.from_pretrained(tiny_llama)
    )
    away(model)
    wanted, metrics = theirs.get_batch_loss_metrics(model, padded(pairs))
    slopes = gradients_of(model, wanted)

    if mode != "off":
        use_tree_attention(model.get_base_model())
    trainer = trainer_of(0.4, "all")
    trainer.heed(trainer.survey(pairs, None))
    losses, measured = trainer.pair_losses(model, make_row_batch(trainer._rows(pairs), mode), pairs)
    assert losses.mean().item() == pytest.approx(wanted.item(), rel=1e-6)
    for ours, name in {"margin": "log_odds_chosen", "sft_loss": "nll_loss", "logprob_chosen": "logps/chosen"}.items():
        assert measured[ours].mean().item() == pytest.approx(metrics[name], rel=1e-5)
    for name, slope in gradients_of(model, losses.mean()).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-4, atol=1e-6, msg=name)


def test_without_prompts_the_supervised_loss_is_that_of_sft(tiny, make_pairs):
    """The mean over all answer tokens; the odds are those of sft_on all."""
    pairs, model = make_pairs(5), tiny.llama()
    found = {}
    for sft_on in ("answer", "all"):
        trainer = trainer_of(0.4, sft_on)
        trainer.heed(trainer.survey(pairs, None))
        with torch.no_grad():
            found[sft_on] = trainer.pair_losses(model, make_row_batch(trainer._rows(pairs), "off"), pairs)[1]
    torch.testing.assert_close(found["answer"]["margin"], found["all"]["margin"])
    tokens = torch.tensor([pair.chosen.num_trained for pair in pairs])
    by_token = -(found["answer"]["logprob_chosen"] * tokens).sum() / tokens.sum()
    assert found["answer"]["sft_loss"].mean().item() == pytest.approx(by_token.item())


def test_answers_among_all_targets(make_pairs):
    (pair,) = make_pairs(1)
    rows = trainer_of(0.1, "all")._rows([pair])
    expected = [False, False, *[True] * (pair.chosen.num_trained + pair.rejected.num_trained)]
    assert answer_mask(rows, pair.rows).tolist() == expected


def run_of(settings_of, pairs_file, name, **changed):
    common = {"data__train": str(pairs_file), "train__batch_size": 4, "train__max_steps": 6, "eval__samples": 2}
    return settings_of(method="orpo", run__name=name, **{**common, **changed})


def test_a_run_learns_the_chosen_answers_and_to_prefer_them(settings_of, pairs_file):
    """Measured on the pairs that it learns from."""
    seen = {"data__eval": str(pairs_file), "data__eval_share": 0.0, "orpo": {"weight": 0.5}}
    result = train(run_of(settings_of, pairs_file, "learns", train__max_steps=20, **seen))
    assert result.after["loss"] < 0.9 * result.before["loss"]
    assert result.after["sft_loss"] < 0.9 * result.before["sft_loss"]
    assert result.after["margin"] > result.before["margin"] + 0.5
    assert result.after["accuracy"] == 1 and "exact_match" in result.after


@pytest.mark.parametrize("sft_on", ["answer", "all"])
def test_layouts_and_passes_give_the_same_losses(settings_of, pairs_file, sft_on):
    losses = []
    for name, changed in {"packs": {}, "padded": {"data__packing": "off", "train__micro_batch_size": 2}}.items():
        settings = run_of(settings_of, pairs_file, name, train__max_steps=4, orpo={"sft_on": sft_on}, **changed)
        folder = train(settings).folder
        losses.append([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, pairs_file, cut_and_resumed):
    assert cut_and_resumed(train(run_of(settings_of, pairs_file, "whole", run__checkpoint_steps=2)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"orpo.weight": "-1"}, "0 or more"),
        ({"orpo.sft_on": "prompt"}, "answer"),
        ({"dpo.beta": "0.2"}, "does not use"),
    ],
)
def test_settings_that_do_not_fit(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(None, {"method": "orpo", **given})
