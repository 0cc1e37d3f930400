"""KTO: the loss by hand and as TRL computes it, its gradients, a run that learns, resume."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from fitune.config.settings_loader import load_settings
from fitune.data.judged import mismatched
from fitune.data.token_rows import JudgedRow
from fitune.errors import SettingsError
from fitune.methods.kto.trainer import KtoTrainer, kto_loss, unbalanced
from fitune.ops.token_logprobs import make_row_batch, sum_by_row, token_logprobs
from fitune.ops.tree_attention import use_tree_attention
from fitune.runs.run_folder import read_rows
from fitune.training.run import train

WORDS = ("cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee")


@pytest.fixture(scope="module")
def judged_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    rows = [
        {"prompt": f"say {word}", "completion": answer, "label": good}
        for word in WORDS
        for answer, good in ((word, True), (word[::-1] + "x", False))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def judged_rows(make_pairs):
    """Rows of five prompts, three of them wanted, each with the answer before it as the mismatched one."""
    rows = [pair.chosen for pair in make_pairs(5)]
    others = mismatched(rows, [str(row.input_ids[:3]) for row in rows])
    wanted = (True, False, True, True, False)
    return [JudgedRow(row, good, other) for row, good, other in zip(rows, wanted, others, strict=True)]


def test_the_loss_by_hand():
    """r = 3 and −1, z = 2, β = 0.5: σ(0.5) for the wanted answer, σ(1.5) for the other."""
    losses = kto_loss(torch.tensor([3.0, -1.0]), torch.tensor([True, False]), 2.0, 0.5, (4.0, 2.0))
    wanted, unwanted = (1 / (1 + math.exp(-x)) for x in (0.5, 1.5))
    assert losses.tolist() == pytest.approx([2 * (1 - wanted), 4 * (1 - unwanted)])


@pytest.mark.parametrize(("scale", "above"), [(1.0, True), (0.1, True), (-0.1, False)])
@pytest.mark.parametrize("mode", ["tree", "rows", "off"])
def test_the_loss_and_its_gradients_are_trls(
    tiny, tiny_llama, tmp_path, judged_rows, away, gradients_of, mode, scale, above
):
    """The adapter is moved three ways; under one of them the mean is below 0, and z is 0."""
    rows, model = judged_rows, tiny.llama()
    arguments = KTOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=5, beta=0.3, desirable_weight=1.2,
        undesirable_weight=1.5, use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False,
    )  # fmt: skip
    unused = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    theirs = KTOTrainer(
        model, args=arguments, train_dataset=unused, processing_class=AutoTokenizer.from_pretrained(tiny_llama)
    )
    trainer = KtoTrainer.__new__(KtoTrainer)
    trainer.beta, trainer.weights = 0.3, (1.5, 1.2)
    everything = [*rows, *(row.mismatched for row in rows)]

    def logprobs(asked):
        with torch.no_grad():
            batch = make_row_batch(asked, mode)
            return [(value,) for value in sum_by_row(token_logprobs(model, batch), batch).tolist()]

    trainer.reference = dict(zip(everything, measured_plainly(model, everything), strict=True))
    away(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B.default" in name:
                value.mul_(scale)
    columns = [
        {
            "prompt_ids": list(row.input_ids[:3]),
            "completion_ids": list(row.input_ids[3:]),
            "KL_completion_ids": list(rows[index - 1].input_ids[3:]),  # rotated as TRL does
            "label": row.desirable,
        }
        for index, row in enumerate(rows)
    ]
    wanted = theirs.compute_loss(model, DataCollatorForUnpairedPreference(pad_token_id=0)(columns))
    slopes = gradients_of(model, wanted)
    kl = theirs._metrics["train"]["kl"][-1]

    if mode != "off":
        use_tree_attention(model.get_base_model())
    trainer.answer_logprobs = lambda asked, recovery: dict(zip(asked, logprobs(asked), strict=True))
    trainer.heed(trainer.survey(rows, None))
    assert trainer.kl == pytest.approx(kl, rel=1e-4, abs=1e-6) and (trainer.kl > 0) == above
    losses, measured = trainer.pair_losses(model, make_row_batch(rows, mode), rows)
    assert losses.mean().item() == pytest.approx(wanted.item(), rel=1e-5)
    margin = theirs._metrics["train"]["rewards/margins"][-1]
    assert trainer.summarize(measured, rows)["margin"] == pytest.approx(margin, rel=1e-4)
    for name, slope in gradients_of(model, losses.mean()).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-3, atol=1e-6, msg=name)


def measured_plainly(model, rows):
    """Log-probabilities from the model's own logits, one row at a time."""
    found = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        each = logps.gather(-1, ids[0, 1:, None])[:, 0]
        found.append((each[torch.tensor(row.trained[1:])].sum().item(),))
    return found


def test_rows_are_told_apart_by_label(judged_rows):
    trainer = KtoTrainer.__new__(KtoTrainer)
    measured = {
        "reward": torch.tensor([1.0, -1.0, 2.0, 3.0, -2.0]),
        "accuracy": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]),
        "kl": torch.full((5,), 0.5),
    }
    found = trainer.summarize(measured, judged_rows)
    assert found == pytest.approx(
        {"accuracy": 0.8, "kl": 0.5, "margin": 3.5, "reward_desirable": 2.0, "reward_undesirable": -1.5}
    )
    only = trainer.summarize({name: value[:1] for name, value in measured.items()}, judged_rows[:1])
    assert only.keys() == {"accuracy", "kl", "reward_desirable"}


def test_weights_that_the_paper_advises_against(judged_rows):
    """Three wanted and two unwanted rows."""
    assert unbalanced(judged_rows, 1.0, 1.5) is None and unbalanced(judged_rows, 1.0, 1.2) is None
    advice = unbalanced(judged_rows, 1.0, 1.0)
    assert advice is not None and "1.50 to 1" in advice and "kto.undesirable_weight 1.5 " in advice
    advice = unbalanced(judged_rows, 0.5, 1.0)
    assert advice is not None and "0.75 to 1" in advice and "kto.desirable_weight 0.667 " in advice
    assert unbalanced(judged_rows[:1], 1.0, 1.0) is None


def run_of(settings_of, judged_file, name, **changed):
    common = {"data__train": str(judged_file), "train__batch_size": 4, "train__max_steps": 6, "eval__samples": 2}
    return settings_of(method="kto", run__name=name, **{**common, **changed})


def test_a_run_learns_to_tell_answers_apart_and_starts_at_the_reference(settings_of, judged_file):
    """Measured on the answers that it learns from. At the reference r and z are 0, and each σ is 0.5."""
    seen = {"data__eval": str(judged_file), "data__eval_share": 0.0, "kto": {"beta": 0.5}}
    result = train(run_of(settings_of, judged_file, "learns", train__max_steps=20, **seen))
    assert result.before["loss"] == pytest.approx(0.5, abs=1e-5) and result.before["kl"] == pytest.approx(0, abs=1e-5)
    assert result.after["loss"] < 0.4 and result.after["margin"] > 1
    assert result.after["accuracy"] > 0.8 and "exact_match" in result.after


def test_layouts_and_passes_give_the_same_losses(settings_of, judged_file):
    losses = []
    for name, changed in {"packs": {}, "padded": {"data__packing": "off", "train__micro_batch_size": 2}}.items():
        folder = train(run_of(settings_of, judged_file, name, train__max_steps=4, **changed)).folder
        losses.append([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


def test_full_tuning_keeps_its_reference(settings_of, judged_file):
    changed = {"train__tuning": "full", "train__learning_rate": 1e-3}
    result = train(run_of(settings_of, judged_file, "full", **changed))
    assert result.before["loss"] == pytest.approx(0.5, abs=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, judged_file, cut_and_resumed):
    assert cut_and_resumed(train(run_of(settings_of, judged_file, "whole", run__checkpoint_steps=2)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kto.beta": "0"}, "above 0"),
        ({"kto.undesirable_weight": "-1"}, "0 or more"),
        ({"data.loss_on": "all"}, "whole"),
    ],
)
def test_settings_that_do_not_fit(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(None, {"method": "kto", **given})
