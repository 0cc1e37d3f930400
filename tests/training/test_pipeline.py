"""Chains: what a stage inherits, where it starts, faults with their places, running and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.config.stages import Chain, load_recipe
from fitune.errors import RunError, SettingsError
from fitune.methods.dpo import trainer as dpo
from fitune.runs import manifest as manifests
from fitune.training.pipeline import saved_chain, train_chain

RECIPES = Path(__file__).parents[2] / "recipes"


def load_chain(path, overrides=None):
    chain = load_recipe(path, overrides)
    assert isinstance(chain, Chain)
    return chain


def write(path, **top):
    path.write_text(yaml.safe_dump(top, sort_keys=False))
    return path


STAGES = [
    {"name": "sft", "method": "sft", "train": {"learning_rate": 0.01}},
    {"name": "judge", "method": "reward", "data": {"train": "pairs.jsonl"}},
    {"method": "dpo", "data": {"train": "pairs.jsonl"}},
]


def test_stages_inherit_and_start_from_the_last_policy(tmp_path):
    path = write(
        tmp_path / "c.yaml",
        run={"name": "c", "folder": "all"},
        lora={"rank": 4},
        train={"batch_size": 2},
        stages=STAGES,
    )
    chain = load_chain(path, {"train.seed": "3"})
    sft, judge, dpo = chain.stages
    assert [stage.name for stage in chain.stages] == ["sft", "judge", "3-dpo"]
    assert (sft.settings.lora.rank, sft.settings.lora.continue_from) == (4, None)
    for stage in (judge, dpo):
        assert stage.settings.lora.continue_from == str(Path("all/c/sft"))
        assert stage.settings.lora.rank == 16  # its default: the adapter's own holds
    assert dpo.settings.run.folder == str(Path("all/c")) and dpo.settings.run.name == "3-dpo"
    assert {stage.settings.train.batch_size for stage in chain.stages} == {2}
    assert {stage.settings.train.seed for stage in chain.stages} == {3}
    assert isinstance(load_recipe(RECIPES / "pig-latin.yaml"), Settings)


def test_a_stage_can_start_elsewhere(tmp_path):
    stages = [STAGES[0], {**STAGES[1], "from": "base"}, {**STAGES[2], "from": "judge"}]
    chain = load_chain(write(tmp_path / "c.yaml", stages=stages))
    assert chain.stages[1].settings.lora.continue_from is None
    assert chain.stages[2].settings.lora.continue_from == str(Path("runs/c/judge"))


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"method": "stf"}], "stage 1:.*stf"),
        ([{"name": "a"}, {"name": "b", "from": "aa"}], r'stage 2:.*not a stage before this one \(did you mean "a"\?\)'),
        ([{"name": "a"}, {"name": "a"}], "two stages named a"),
        ([{"run": {"name": "x"}}], "belongs to the whole chain"),
        ([{"lora": {"rnak": 3}}, {"train": {"epochs": 0}}], "(?s)stage 1:.*rnak.*stage 2:.*epochs"),
        ([], "stages is not a list"),
        (["sft"], "a stage is a mapping"),
    ],
)
def test_every_fault_has_its_stage(tmp_path, stages, says):
    with pytest.raises(SettingsError, match=says):
        load_chain(write(tmp_path / "c.yaml", stages=stages))


def test_a_command_for_one_run_refuses_a_chain(tmp_path):
    with pytest.raises(SettingsError, match="is a chain of runs"):
        load_settings(write(tmp_path / "c.yaml", stages=STAGES))


def test_the_example_recipe_is_a_whole_chain():
    chain = load_chain(RECIPES / "pig-latin-chain.yaml")
    assert [stage.settings.method for stage in chain.stages] == ["sft", "reward", "dpo"]
    assert chain.stages[2].settings.lora.continue_from == str(chain.folder / chain.stages[0].name)


def test_a_stage_that_learns_from_rewards_takes_the_reward_model_before_it_unless_it_names_its_own(tmp_path):
    stages = [{"name": "sft"}, {"name": "judge", "method": "reward"}, {"name": "ppo", "method": "ppo"}]
    chain = load_chain(write(tmp_path / "c.yaml", stages=stages, run={"folder": "runs"}))
    assert chain.stages[2].settings.rl.rewards == [f"run:{chain.folder / 'judge'}"]
    assert chain.stages[2].settings.lora.continue_from == str(chain.folder / "sft")
    stages[2]["rl"] = {"rewards": ["pig_latin"]}
    chain = load_chain(write(tmp_path / "c.yaml", stages=stages))
    assert chain.stages[2].settings.rl.rewards == ["pig_latin"]


def test_a_chain_runs_and_goes_on_at_the_unfinished_stage(tmp_path, neox_folder, backwards, monkeypatch):
    pairs = tmp_path / "pairs.jsonl"
    words = ["cat", "barn", "mat", "piglet"]
    pairs.write_text(
        "".join(json.dumps({"prompt": f"say {w}", "chosen": w[::-1], "rejected": w}) + "\n" for w in words)
    )
    path = write(
        tmp_path / "c.yaml",
        model={"name": str(neox_folder), "precision": "fp32", "device": "cpu"},
        run={"folder": str(tmp_path / "runs"), "name": "c"},
        eval={"samples": 0},
        data={"eval_share": 0.0},
        train={"max_steps": 2, "batch_size": 2, "learning_rate": 0.01},
        stages=[
            {"name": "sft", "data": {"train": str(backwards)}},
            {"name": "judge", "method": "reward", "data": {"train": str(pairs)}},
            {"name": "dpo", "method": "dpo", "data": {"train": str(pairs)}, "dpo": {"reference": "live"}},
        ],
    )
    chain = load_chain(path)

    def fails(run):
        raise RunError("the power went")

    monkeypatch.setattr(dpo, "RUNTIME", replace(dpo.RUNTIME, adapt=fails))
    with pytest.raises(RunError, match="the power went"):
        train_chain(chain)
    monkeypatch.undo()
    with pytest.raises(RunError, match="--resume"):
        train_chain(chain)
    again = saved_chain(chain.folder)
    assert again == chain
    results = train_chain(again, resume=True)
    assert [result.folder.name for result in results] == ["dpo"]
    assert manifests.read(chain.folder / "dpo/manifest.json")["status"] == "finished"
    started = load_file(chain.folder / "sft/adapter/adapter_model.safetensors")
    ended = load_file(chain.folder / "dpo/adapter/adapter_model.safetensors")
    assert started.keys() == ended.keys()
    assert not list((chain.folder / "dpo/adapter").glob("*reference*"))
    assert train_chain(again, resume=True) == []
