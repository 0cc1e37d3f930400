"""DPO: the losses by hand and as TRL computes them, the reference, a run that learns, resume."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fitune.config.settings_loader import load_settings
from fitune.data.rows import PairRow, TokenRow
from fitune.errors import SettingsError
from fitune.methods.dpo.trainer import DpoTrainer, dpo_loss, pairs_met
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import read_rows
from fitune.training.run import train


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    rows = [{"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] + "x"} for word in words * 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_pairs(count: int) -> list[PairRow]:
    """Pairs of random ids; the prompt is three tokens, answers are one to five and end with token 2."""
    generator = torch.Generator().manual_seed(3)

    def ids(length):
        return tuple(torch.randint(3, 60, (length,), generator=generator).tolist())

    pairs = []
    for number in range(count):
        prompt = ids(3)
        sides = []
        for length in torch.randint(1, 6, (2,), generator=generator).tolist():
            answer = (*ids(length), 2)
            sides.append(TokenRow((*prompt, *answer), (False,) * 3 + (True,) * len(answer), number))
        pairs.append(PairRow(sides[0], sides[1], number))
    return pairs


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
def test_the_loss_is_that_of_trl_on_the_same_batch(tiny, tiny_llama, tmp_path, loss, smoothing, mode):
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
    with torch.no_grad():  # away from the reference, which TRL has copied by now and which is the bare base
        for name, value in model.named_parameters():
            if "lora_B.default" in name:
                value.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
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


def test_pairs_that_a_short_run_meets():
    pairs = make_pairs(10)
    met = pairs_met(pairs, steps=2, batch_size=3, seed=7)
    assert len(met) == 6 and len({pair.row_number for pair in met}) == 6
    assert pairs_met(pairs, steps=4, batch_size=3, seed=7) == pairs


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


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, pairs_file):
    whole = train(run_of(settings_of, pairs_file, "whole", run__checkpoint_steps=2))
    folder = whole.folder.parent / "cut"
    shutil.copytree(whole.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    manifests.update(folder / "manifest.json", status="interrupted")
    again = train(resume=str(folder))
    one, other = (load_file(run.saved / "adapter_model.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


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
