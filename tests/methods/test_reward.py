"""Reward models: the loss, a run that learns, what is saved, its judgement of a file, resume, faults."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from fitune.config.settings_loader import load_settings
from fitune.data.packing.pair_batching import pair_passes
from fitune.data.read.sources import DataOptions
from fitune.data.token_rows import PairRow, TokenRow
from fitune.errors import ModelError, SettingsError
from fitune.evaluation.inference_model import open_target
from fitune.evaluation.reward_scores import open_reward_model, score
from fitune.methods.reward.trainer import correlation, preference_loss, preference_metrics
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import read_rows
from fitune.training.run import train

RUN = {"method": "reward", "eval": {"samples": 0}}


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """Forty pairs: the better answer ends well."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    rows = [
        {"prompt": f"say {a} {b}", "chosen": f"{a} is good", "rejected": f"{a} is evil"}
        for number, a in enumerate(words)
        for b in words[number % 3 :: 3]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pairs_file, neox_folder):
    from fitune.config.sections import Settings

    settings = Settings(
        method="reward",
        model={"name": str(neox_folder), "precision": "fp32", "device": "cpu"},
        data={"train": str(pairs_file), "eval_share": 0.2},
        train={"batch_size": 4, "learning_rate": 1e-2, "epochs": 3},
        eval={"best_metric": "accuracy", "samples": 0},
        run={"folder": str(tmp_path_factory.mktemp("runs")), "name": "judge"},
    )  # type: ignore[arg-type]
    return SimpleNamespace(result=train(settings), settings=settings)


def test_the_loss_is_that_of_the_paper():
    better, worse = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    losses = preference_loss(better, worse)
    assert losses.tolist() == pytest.approx([0.3132616875, 0.6931471806])  # −log σ(1), log 2
    assert preference_loss(better, worse, center=0.1).tolist() == pytest.approx([0.4132616875, 0.6931471806])


def test_metrics_by_hand():
    row = lambda count: TokenRow((1,) * (count + 1), (False, *[True] * count), 0)  # noqa: E731
    pairs = [PairRow(row(2), row(1), 0), PairRow(row(4), row(3), 1), PairRow(row(2), row(2), 2)]
    found = preference_metrics(torch.tensor([2.0, 4.0, 1.0]), torch.tensor([1.0, 5.0, 1.0]), pairs)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx(0.0)
    assert 0 < found["length_correlation"] < 1
    assert correlation(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0.0


def test_a_pass_holds_whole_pairs_within_its_limit():
    row = lambda ids: TokenRow(ids, (False, *[True] * (len(ids) - 1)), 0)  # noqa: E731
    pairs = [PairRow(row((1, 2, n)), row((1, 2, n, 4)), n) for n in range(5, 12)]
    passes = pair_passes(pairs, max_tokens=9, share=True)
    assert sorted(pair.row_number for one in passes for pair in one) == list(range(5, 12))
    assert (
        max(map(len, passes)) == 2 and len(passes) == 4
    )  # a pair costs 4: the rejected row begins with the chosen one


def test_a_run_learns_to_prefer(finished):
    after = finished.result.after
    assert finished.result.status == "finished"
    assert after["accuracy"] >= 0.85 and after["margin"] > 0.5
    rows = read_rows(finished.result.folder / "metrics.jsonl")
    assert {"accuracy", "margin", "length_correlation"} <= rows[1].keys()
    assert finished.result.before["accuracy"] < 1


def test_what_is_saved_opens_in_plain_peft_with_the_head_beside_it(finished):
    folder = finished.result.saved
    head = load_file(folder / "head.safetensors")["weight"]
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert head.shape == (model.config.hidden_size,)
    assert not any("head" in name and "fitune" in name for name in load_file(folder / "adapter_model.safetensors"))
    facts = json.loads((folder / "fitune.json").read_text())["reward"]
    assert facts["std"] > 0 and facts["answers"] > 0


def test_a_file_is_judged_as_the_evaluation_judged_it(finished, pairs_file, tmp_path):
    model = open_reward_model(open_target(str(finished.result.folder), for_reward=True))
    found = score(model, str(pairs_file), DataOptions())
    assert found.metrics["accuracy"] >= 0.85 and found.metrics["rows"] == len(found.rows)
    first = found.rows[0]
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": first["asked"], "completion": first["chosen"]}) + "\n")
    alone = score(model, str(path), DataOptions())
    assert alone.rows[0]["reward"] == pytest.approx(first["reward_chosen"], abs=1e-4)


def test_a_reward_model_does_not_chat_and_others_do_not_judge(finished, tiny_llama):
    with pytest.raises(ModelError, match="fitune score"):
        open_target(str(finished.result.folder))
    with pytest.raises(ModelError, match="is not a reward model"):
        open_reward_model(open_target(str(tiny_llama), for_reward=True))


def test_padded_passes_learn_the_same(settings_of, pairs_file):
    losses = []
    for packing in ("tree", "off"):
        settings = settings_of(
            **RUN, data__train=str(pairs_file), data__packing=packing, run__name=packing, train__max_steps=4,
            train__batch_size=4, train__micro_batch_size=2,
        )  # fmt: skip
        folder = train(settings).folder
        losses.append([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(settings_of, pairs_file):
    common = {**RUN, "data__train": str(pairs_file), "train__batch_size": 4, "run__checkpoint_steps": 2}
    whole = train(settings_of(**common, run__name="whole", train__max_steps=6))
    folder = whole.folder.parent / "cut"
    shutil.copytree(whole.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-4"]
    manifests.update(folder / "manifest.json", status="interrupted")
    again = train(resume=str(folder))
    one, other = (load_file(run.saved / "adapter_model.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    heads = [load_file(run.saved / "head.safetensors")["weight"] for run in (whole, again)]
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "reward", "train.tuning": "full"}, "trains an adapter and a head"),
        ({"method": "reward", "eval.best_metric": "chrf"}, "which method reward does not measure"),
        ({"method": "sft", "reward.center": "0.5"}, "method is sft, which does not use it"),
        ({"method": "reward", "data.loss_on": "all"}, "compares whole answers"),
    ],
)
def test_settings_that_do_not_fit(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(None, given)
