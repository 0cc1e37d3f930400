"""Settings → the ladder's question; what the user fixed stays; what is free on a card; a run on a card, simulated."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fitune.config.fields import given
from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.errors import DoesNotFit
from fitune.planning.predict import Card, Plan
from fitune.planning.scenario import Scenario
from fitune.planning.search import ladder
from fitune.runs import manifest as manifests
from fitune.training import autofit as runs_fit
from fitune.training.autofit_search import Room, Rows, facts_of, open_settings, room_on, search, start_of, whole_changes
from fitune.training.plan_scenario import rows_of_length

GIB = 2**30


def plan_of(usable_gib: float) -> Any:
    """A made-up card: weights, and activations by the tokens of a pass."""
    weights = {"fp32": 8.0, "bf16": 4.0, "int8": 2.0, "nf4": 1.0}

    def plan(scenario: Scenario) -> Plan:
        tokens = scenario.batch * scenario.seq_len
        states = (3.0 if scenario.tuning == "full" else 0.0) * (0.25 if "8bit" in scenario.optimizer else 1.0)
        need = weights[scenario.weights] + states + tokens / 1000 * (0.2 if scenario.gradient_checkpointing else 1.0)
        slower = 1.3 if scenario.gradient_checkpointing else 1.0
        seconds = slower * (1 + 0.1 * scenario.accumulation)
        return Plan(0, 0, round(need * GIB), {}, "", {}, need <= usable_gib, seconds_per_step=seconds)

    return plan


def rows(tokens: int = 1000) -> Rows:
    return Rows([tokens], lambda settings: rows_of_length(settings, min(tokens, settings.data.max_length or tokens)))


def test_what_was_given_is_known_from_files_flags_and_arguments(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {optimizer: adamw, micro_batch_size: null}\nmodel: {precision: auto}\nfit: off\n")
    settings = load_settings(path, {"lora.rank": "16"})
    assert given(settings) == {"train.optimizer", "lora.rank", "fit"}  # null and auto leave the choice to fitune
    assert settings.fit == "off" and settings == Settings(fit="off")
    assert given(Settings(train={"gradient_checkpointing": False})) == {"train.gradient_checkpointing"}  # type: ignore[arg-type]
    assert given(Settings()) == frozenset()


def test_what_the_user_fixed_is_not_open_and_may_be_opened_again():
    assert open_settings(Settings()) == set(ladder.KEYS) - {ladder.LENGTH}
    fixed = load_settings(None, {"train.tuning": "full", "train.gradient_checkpointing": "false"})
    assert open_settings(fixed) == set(ladder.KEYS) - {ladder.TUNING, ladder.CHECKPOINTING, ladder.LENGTH}
    freed = load_settings(None, {"train.tuning": "full", "memory.may_change": "train.tuning,data.max_length"})
    assert open_settings(freed) == set(ladder.KEYS)


def test_the_batch_of_a_step_never_changes():
    found = search(Settings(), rows(), plan_of(6.0))
    assert found.changes == {ladder.MICRO: 2}
    found = search(load_settings(None, {"train.micro_batch_size": "8"}), rows(), plan_of(6.0))
    assert found.changes == {ladder.CHECKPOINTING: True}


def test_full_fine_tuning_is_not_quantized_and_not_exchanged_unless_allowed():
    full = load_settings(None, {"train.tuning": "full"})
    with pytest.raises(DoesNotFit, match=r"set train.tuning lora, or allow it with memory.may_change \[train.tuning\]"):
        search(full, rows(), plan_of(6.0))
    allowed = load_settings(None, {"train.tuning": "full", "memory.may_change": "train.tuning"})
    assert search(allowed, rows(), plan_of(6.0)).changes == {ladder.TUNING: "lora", ladder.MICRO: 2}


def test_nf4_brings_double_quantization_unless_it_was_set():
    found = search(Settings(), rows(), plan_of(1.5))
    assert found.changes[ladder.QUANTIZATION] == "nf4" and found.changes["model.double_quant"] is True
    fixed = Settings(model={"double_quant": False})  # type: ignore[arg-type]
    assert "model.double_quant" not in search(fixed, rows(), plan_of(1.5)).changes
    assert search(Settings(), rows(), plan_of(1.5), base_is_quantized=False).plan.fits
    with pytest.raises(DoesNotFit):
        search(Settings(), rows(), plan_of(1.5), base_is_quantized=True)


def test_settings_that_do_not_go_together_are_not_chosen():
    pissa = load_settings(None, {"lora.init": "pissa"})
    with pytest.raises(DoesNotFit):
        search(pissa, rows(), plan_of(2.5))


def test_shorter_rows_leave_the_longest_out():
    lengths = [*range(1, 100), 1000]
    start = start_of(Settings(), lengths)
    assert start.values[ladder.LENGTH] == 1000 and start.lengths == (99, 95, 90, 75, 50)
    assert ladder.LENGTH in start.fixed and start.kept_share(99) == 0.99
    changed = whole_changes(Settings(), {ladder.LENGTH: 99})
    assert changed == {ladder.LENGTH: 99, "data.too_long": "drop"}
    cut = load_settings(None, {"data.too_long": "cut"})
    assert whole_changes(cut, {ladder.LENGTH: 99}) == {ladder.LENGTH: 99}


def test_room_is_what_is_free_or_the_budget_whichever_is_less():
    card = Card("RTX", 24 * GIB, (8, 9), GIB // 2)
    assert room_on(card, None, None, 0.05).gpu.usable_bytes == 24 * GIB
    taken = room_on(card, 10 * GIB, None, 0.05)
    assert (taken.gpu.usable_bytes, taken.words) == (10.5 * GIB, "what is free on RTX")
    named = room_on(card, 10 * GIB, "8GiB", 0.25)
    assert (named.gpu.usable_bytes, named.less_margin().usable_bytes) == (8 * GIB, 6 * GIB)
    assert room_on(card, None, "80GiB", 0.05).gpu.usable_bytes == 24 * GIB  # a budget does not make a card larger


def test_the_manifest_tells_what_was_and_what_is():
    found = search(Settings(), rows(), plan_of(6.0))
    facts = facts_of(found, Settings(), Room(Card("x", 7 * GIB, (8, 0), 0), "x", 0.05))
    assert facts["ladder"]["changes"] == {ladder.MICRO: {"was": None, "is": 2}}
    assert facts["ladder"]["steps"][0]["saves_bytes"] == 6 * GIB


# ---- a run on a card, simulated: the CPU trains, the plan believes in a card


@pytest.fixture
def on_a_card(monkeypatch):
    """`autofit_run` and the comparison see a card of so many GiB; training stays on the CPU."""

    def set_up(gib: float) -> None:
        monkeypatch.setattr(
            runs_fit, "room_of", lambda settings, ready: Room(Card("card", int(gib * GIB), (8, 0), 0), "card", 0.0)
        )
        monkeypatch.setattr(
            runs_fit, "predict", lambda values, scenario, gpu: plan_of(gpu.usable_bytes / GIB)(scenario)
        )
        original = runs_fit.autofit_run

        def autofit_run(settings: Settings, ready: Any) -> Any:
            card: Any = SimpleNamespace(device="cuda", fast_bf16=True)
            return original(settings, replace(ready, hardware=card))

        monkeypatch.setattr(runs_fit, "autofit_run", autofit_run)

    return set_up


def test_a_run_takes_the_ladders_choice_says_it_and_keeps_it(settings_of, tmp_path, on_a_card, capsys):
    import fitune

    on_a_card(4.02)
    settings = settings_of(fit="auto", train__batch_size=4, model__precision="bf16")
    result = fitune.train(settings)
    said = capsys.readouterr().err
    told = [line for line in said.splitlines() if line.startswith("memory: ")]
    assert told[1].startswith("memory: these settings do not fit; searching for some that do")
    assert told[2].startswith("memory: as asked it needs") and "quality: the result is the same" in told[3]
    assert told[-1].startswith("memory: it fits so")
    manifest = manifests.read(result.folder / "manifest.json")
    changes = manifest["memory"]["ladder"]["changes"]
    assert changes and manifest["memory"]["room"]["of"] == "card"
    kept = fitune.show_run(result.folder)["settings"]
    for key, change in changes.items():
        section, _, name = key.partition(".")
        assert kept[section][name] == change["is"] != change["was"]


def test_a_run_that_cannot_fit_ends_before_the_weights_are_loaded(settings_of, tmp_path, on_a_card, monkeypatch):
    import fitune
    from fitune.training import components

    monkeypatch.setattr(components, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    on_a_card(0.5)
    with pytest.raises(DoesNotFit, match="the run does not fit 512 MiB"):
        fitune.train(settings_of(fit="auto"))
    assert not (tmp_path / "runs" / "one").exists()


def test_fit_off_plans_nothing(settings_of, monkeypatch):
    monkeypatch.setattr(runs_fit, "search", lambda *args, **kwargs: pytest.fail("a plan was made"))
    ready: Any = SimpleNamespace(hardware=SimpleNamespace(device="cuda"))
    settings = settings_of(fit="off")
    assert runs_fit.autofit_run(settings, ready).settings is settings
    ready.hardware.device = "cpu"  # without a budget
    assert runs_fit.autofit_run(settings_of(fit="auto"), ready).facts == {}


def test_a_resumed_run_keeps_the_choice_of_its_beginning(tmp_path):
    from fitune.runs.run_folder import RunFolder
    from fitune.training.resume import with_fit_of

    run = RunFolder(tmp_path)
    changes = {"train.optimizer": {"was": "adamw", "is": "adamw_8bit"}, ladder.MICRO: {"was": None, "is": 2}}
    manifests.write(run.manifest, {"memory": {"ladder": {"changes": changes}}})
    found = with_fit_of(run, Settings())
    assert (found.train.optimizer, found.train.micro_batch_size) == ("adamw_8bit", 2)
    other = load_settings(None, {"train.micro_batch_size": "4"})  # asked for now: it is not what it was
    assert with_fit_of(run, other).train.micro_batch_size == 4
    manifests.write(run.manifest, {})
    assert with_fit_of(run, Settings()) == Settings()


def plan_on_a_process(values: Any, scenario: Scenario, row_tokens: int | None = None) -> Any:
    """A made-up CPU: by the tokens of a pass."""
    grown = plan_of(0)(scenario).smi_peak_bytes
    return SimpleNamespace(growth_peak_bytes=grown, allocated_peak_bytes=grown, parts={"weights": grown}, moment="x")


def test_a_cpu_with_a_budget_is_fitted_by_the_growth_of_the_process(settings_of, monkeypatch, capsys):
    import fitune

    monkeypatch.setattr(runs_fit, "plan_cpu", plan_on_a_process)
    monkeypatch.setattr(runs_fit, "SMALLEST_ON_CPU", 0)
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB)))
    settings = settings_of(
        fit="auto", train__batch_size=4, model__precision="bf16", memory={"budget": "5.02GiB", "margin": 0.0}
    )
    result = fitune.train(settings)
    said = capsys.readouterr().err
    manifest = manifests.read(result.folder / "manifest.json")
    assert manifest["memory"]["ladder"]["changes"] and manifest["memory"]["room"]["of"] == "memory.budget 5.02GiB"
    assert "(an estimate)" not in said  # the time of a step on a CPU is not known
    assert manifest["memory"]["predicted"]["resident_growth_bytes"] > 4 * GIB
    assert (
        manifest["memory"]["comparison"]["agrees"] is False and "memory than planned" not in said
    )  # less does no harm
    shown = fitune.show_run(result.folder)["summary"]["memory"]["resident_growth_bytes"]
    assert shown["measured"] < shown["predicted"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tight_budget_on_a_cpu_is_planned_down_to_the_last_quantization(settings_of, precision, monkeypatch):
    """Every level is traced, int8 and NF4 among them; no process is as small as this budget."""
    import fitune

    planned, plan_cpu = [], runs_fit.plan_cpu

    def noted(values: Any, scenario: Scenario, row_tokens: int) -> Any:
        planned.append(scenario.weights)
        return plan_cpu(values, scenario, row_tokens)

    monkeypatch.setattr(runs_fit, "plan_cpu", noted)
    settings = settings_of(fit="auto", model__precision=precision, memory={"budget": "100MiB"})
    with pytest.raises(DoesNotFit, match="Nothing that fitune can change makes it fit"):
        fitune.train(settings)
    assert {precision, "int8", "nf4"} <= set(planned)


def test_a_cpu_without_a_budget_is_predicted_too_and_trained_as_asked(settings_of, monkeypatch, capsys):
    import fitune

    monkeypatch.setattr(runs_fit, "search", lambda *args, **kwargs: pytest.fail("the ladder was climbed"))
    monkeypatch.setattr(runs_fit, "SMALLEST_ON_CPU", 0)
    result = fitune.train(settings_of(fit="auto"))
    memory = manifests.read(result.folder / "manifest.json")["memory"]
    assert memory["predicted"]["resident_growth_bytes"] > 0 < memory["measured"]["resident_growth_bytes"]
    assert "growth of process RSS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({}, "tree"),
        ({"attention_dropout": 0.1}, "off"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "tree"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "off"),
        ({"text_config": {"layer_types": ["conv", "full_attention"]}}, "off"),
    ],
)
def test_the_plan_expects_the_layout_that_training_will_find(config: dict[str, Any], mode: str):
    assert runs_fit.likely_mode(Settings(), config) == mode
