"""Settings by their earlier names: accepted everywhere, with a hint, until the release that removes them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version
from pydantic import ValidationError

from fitune.cli.options.flags import SettingsCommand
from fitune.config.fields import all_fields
from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.config.stages import Chain, load_recipe
from fitune.earlier_names import RENAMED
from fitune.errors import SettingsError
from fitune.runs.compare import compare_runs, read_settings, show_run
from fitune.runs.html_report import changed_settings
from fitune.runs.run_folder import RunFolder
from fitune.training.pipeline import saved_chain
from fitune.training.resume import check_same_settings

# Earlier name → a value that is not the default. data.eval excludes data.eval_share, so one of them is set at a time.
VALUES: dict[str, Any] = {
    "data.test": "held.jsonl",
    "data.test_share": 0.25,
    "train.schedule": "linear",
    "train.warmup_share": 0.5,
    "rl.answers": 6,
    "rl.rows_at_once": 8,
    "rl.endless_reward": -1.0,
    "rl.passes": 3,
    "rl.loss_over": "answer",
    "rl.lam": 0.9,
}
PPO = {"method": "ppo", "rl": {"rewards": ["pig_latin"]}}
by_earlier_name = pytest.mark.parametrize("old", RENAMED)


def recipe(path: Path, *keys: str) -> Path:
    """A recipe that sets these keys, by the names given."""
    values: dict[str, Any] = {"method": "ppo", "rl": {"rewards": ["pig_latin"]}}
    for key in keys:
        section, name = key.split(".")
        values.setdefault(section, {})[name] = VALUES.get(key, 5)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def value_of(settings: Settings, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def flags_of(*words: str) -> tuple[Any, str]:
    """(settings of a command line or its exit status, everything it printed)."""
    seen = []

    @click.command(cls=SettingsCommand)
    @click.pass_context
    def command(ctx: click.Context) -> None:
        seen.append(load_settings(None, ctx.meta["settings"]))

    result = CliRunner().invoke(command, words)
    return (seen[0] if seen else result.exit_code), result.output


@pytest.fixture
def old_run(tmp_path: Path) -> RunFolder:
    """The folder of a run that an earlier fitune wrote: every setting, by the names of then."""
    settings = load_settings(None, {"method": "ppo", "rl.rewards": ["pig_latin"], "rl.gae_lambda": 0.9})
    stored = settings.model_dump(mode="json")
    for old, renamed in RENAMED.items():
        section, name = old.split(".")
        stored[section][name] = stored[section].pop(renamed.new.rpartition(".")[2])
    run = RunFolder(tmp_path / "old")
    run.path.mkdir()
    run.write_settings(stored)
    run.manifest.write_text(json.dumps({"status": "interrupted"}))
    return run


def test_every_earlier_name_has_a_value_here_and_leads_to_a_setting():
    assert VALUES.keys() == RENAMED.keys()
    assert {renamed.new for renamed in RENAMED.values()} <= set(all_fields())
    assert not RENAMED.keys() & set(all_fields())


def test_no_earlier_name_outlives_its_release():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    version = Version(Version(project["version"]).base_version)
    late = [old for old, renamed in RENAMED.items() if Version(renamed.removed_in) <= version]
    assert not late, f"fitune {version} removes {', '.join(late)}: delete them from src/fitune/earlier_names.py"


@by_earlier_name
def test_a_recipe_may_have_it(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = load_settings(recipe(tmp_path / "run.yaml", old))
    assert value_of(settings, RENAMED[old].new) == VALUES[old]
    [hint] = capsys.readouterr().err.splitlines()
    assert hint.startswith(f"{tmp_path}/run.yaml:") and f": {old} is now called {RENAMED[old].new}; fitune 0.3" in hint


@by_earlier_name
def test_a_flag_may_be_it_with_dashes_too(old: str):
    for word in (f"--{old}", f"--{old.replace('_', '-')}"):
        settings, printed = flags_of(word, str(VALUES[old]), "--method", "ppo", "--rl.rewards", "pig_latin")
        assert value_of(settings, RENAMED[old].new) == VALUES[old]
        assert printed.splitlines() == [
            f"--{old} is now called {RENAMED[old].new}; fitune 0.3.0 will not accept the old name"
        ]


@by_earlier_name
def test_a_call_may_have_it_and_a_reader_too(old: str, capsys: pytest.CaptureFixture[str]):
    section, name = old.split(".")
    values = {**PPO, section: {**PPO.get(section, {}), name: VALUES[old]}}  # type: ignore[dict-item]
    settings = Settings(**values)
    assert value_of(settings, RENAMED[old].new) == VALUES[old] == value_of(settings, old)
    assert RENAMED[old].new.rpartition(".")[2] in getattr(settings, section).model_fields_set
    assert (
        value_of(load_settings(None, {"rl.rewards": ["exact"], "method": "ppo", old: VALUES[old]}), old) == VALUES[old]
    )
    assert capsys.readouterr().err.count(f"{old} is now called {RENAMED[old].new}") == 4


def test_what_is_no_setting_is_still_no_attribute():
    assert not hasattr(Settings().rl, "anwsers") and not hasattr(Settings(), "test")


def test_a_run_of_an_earlier_fitune_is_read_shown_compared_and_resumed(
    old_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stored = read_settings(old_run)
    [hint] = capsys.readouterr().err.splitlines()
    assert hint.startswith(f"{old_run.settings} has earlier names") and "rl.lam (now rl.gae_lambda)" in hint
    assert all(f"{old} (now {renamed.new})" in hint for old, renamed in RENAMED.items())

    settings = Settings(**stored)
    assert settings.rl.gae_lambda == 0.9 and show_run(old_run.path)["settings"] == stored
    check_same_settings(old_run, settings.model_dump(mode="json"))
    defaults = Settings().model_dump(mode="json")
    assert dict(changed_settings(old_run, defaults)) == {
        "method": "ppo",
        "rl.rewards": ["pig_latin"],
        "rl.gae_lambda": 0.9,
    }

    new_run = RunFolder(tmp_path / "new")
    new_run.path.mkdir()
    new_run.write_settings({**settings.model_dump(mode="json"), "method": "grpo"})
    new_run.manifest.write_text("{}")
    assert compare_runs([old_run.path, new_run.path])["settings"] == {"method": ["ppo", "grpo"]}
    assert not capsys.readouterr().err, "the hint is given once"
    assert load_settings(old_run.settings, {"rl.gae_lambda": 0.8}).rl.gae_lambda == 0.8


def test_a_chain_of_an_earlier_fitune_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored = [{"name": "one", "settings": {"train": {"schedule": "linear"}, "data": {"test_share": 0.5}}}]
    (tmp_path / "chain.json").write_text(json.dumps(stored))
    chain = saved_chain(tmp_path)
    assert chain is not None and chain.stages[0].settings.data.eval_share == 0.5
    assert capsys.readouterr().err.splitlines()[0].startswith(f"{tmp_path}/chain.json has earlier names of settings")


def test_a_stage_is_stronger_than_its_chain_and_a_flag_than_both_by_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "chain.yaml"
    path.write_text("data: {eval_share: 0.1}\nstages:\n  - data: {test_share: 0.2}\n  - train: {schedule: linear}\n")
    chain = load_recipe(path)
    assert isinstance(chain, Chain)
    assert [stage.settings.data.eval_share for stage in chain.stages] == [0.2, 0.1]
    assert len(capsys.readouterr().err.splitlines()) == 2
    chain = load_recipe(path, {"data.test_share": "0.3"})
    assert isinstance(chain, Chain)
    assert [stage.settings.data.eval_share for stage in chain.stages] == [0.3, 0.3]
    assert capsys.readouterr().err.count("--data.test_share is now called") == 1


@by_earlier_name
def test_both_names_at_once_are_refused_with_both_places(old: str, tmp_path: Path):
    new = RENAMED[old].new
    path = recipe(tmp_path / "run.yaml", old, new)
    lines = path.read_text().splitlines()
    places = [
        f"{path}:{next(i for i, line in enumerate(lines, 1) if line.strip().startswith(key.rpartition('.')[2] + ':'))}: {key}"
        for key in (old, new)
    ]
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert f"{places[0]} and {places[1]} are the same setting; keep {new}" in caught.value.faults

    both = {new: VALUES[old], old: VALUES[old]}
    with pytest.raises(SettingsError, match=f"--{new} and --{old} are the same setting; keep {new}"):
        load_settings(None, both)
    status, printed = flags_of(f"--{old}", "1", f"--{new}", "1")
    assert status == 2 and f"--{old} and --{new} are the same setting; keep {new}" in printed
    section = new.partition(".")[0]
    with pytest.raises(ValidationError, match=f"{old} and {new} are the same setting"):
        Settings(**{section: {key.partition(".")[2]: value for key, value in reversed(both.items())}})


def test_a_run_folder_with_both_names_is_refused(old_run: RunFolder):
    stored = yaml.safe_load(old_run.settings.read_text())
    stored["rl"]["num_generations"] = 2
    old_run.write_settings(stored)
    with pytest.raises(SettingsError, match=r"settings\.yaml: rl\.answers and .*rl\.num_generations are the same"):
        read_settings(old_run)


def test_the_help_does_not_list_them():
    _, printed = flags_of("--help")
    listed = {word for word in printed.split() if word.startswith("--")}
    assert {f"--{renamed.new}" for renamed in RENAMED.values()} <= listed
    assert not {f"--{old}" for old in RENAMED} & listed


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("rl.anwsers", 'did you mean "num_generations"'),
        ("train.test_share", "write data.eval_share"),
        ("warmup_shares", 'did you mean "train.warmup_ratio"'),
        ("rl.num_generation", 'did you mean "num_generations"'),
        ("lr_scheduler", "write train.lr_scheduler"),
    ],
)
def test_a_misspelt_earlier_name_is_led_to_todays(key: str, expected: str):
    with pytest.raises(SettingsError, match=expected):
        load_settings(None, {key: "1"})
