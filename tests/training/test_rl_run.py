"""ppo and grpo as whole runs: settings in, an adapter out, and every fault of a user before or within them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fitune
from fitune.adapters.adapter_folder import read_facts
from fitune.config.settings_loader import load_settings
from fitune.data.examples import Example
from fitune.errors import DataError, ModelError, RewardError, SettingsError
from fitune.evaluation.inference_model import open_target
from fitune.evaluation.reward_scores import open_reward_model
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import RunFolder, read_rows

RL = {
    "rewards": ["length:2", "0.5*exact"],
    "max_new_tokens": 6,
    "num_generations": 2,
    "num_iterations": 2,
    "truncated_reward": None,
}


@pytest.fixture
def rl_settings(settings_of: Any) -> Any:
    """Settings of a short run that learns from rewards."""

    def make(method: str, **changed: Any) -> Any:
        rl = {**RL, **changed.pop("rl", {})}
        return settings_of(method=method, rl=rl, **{"train__max_steps": 2, "eval__max_new_tokens": 6, **changed})

    return make


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_run_leaves_an_adapter_its_samples_and_its_metrics(method: str, rl_settings: Any) -> None:
    result = fitune.train(rl_settings(method))
    assert (result.status, result.steps) == ("finished", 2)
    assert {"adapter_model.safetensors", "fitune.json"} <= {path.name for path in (result.folder / "adapter").iterdir()}
    run = RunFolder(result.folder)
    steps = [row for row in read_rows(run.metrics) if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert {"reward", "reward_length:2", "reward_exact", "kl", "entropy", "clip_fraction"} <= steps[0].keys()
    measured = [row for row in read_rows(run.metrics) if row["kind"] == "eval"]
    assert {"reward", "answer_tokens", "stopped", "word_accuracy"} <= measured[-1].keys()
    kept = [row for row in read_rows(run.samples) if row["moment"] == "rollout"]
    assert {row["step"] for row in kept} == {1, 2}
    page = run.report.read_text()
    assert page.index("<h3>Lowest reward</h3>") < page.index("<h3>Highest reward</h3>")


def test_it_goes_on_from_another_runs_adapter_which_stays_the_reference(rl_settings: Any, settings_of: Any) -> None:
    start = fitune.train(settings_of(run__name="start", train__max_steps=2)).folder / "adapter"
    before = load_file(start / "adapter_model.safetensors")
    changed = {"lora__continue_from": "start", "run__name": "second", "train__learning_rate": 1e-2}
    result = fitune.train(rl_settings("ppo", rl={"kl_coef": 0.1}, **changed))
    first = read_rows(result.folder / "metrics.jsonl")[1]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)  # the policy starts as its reference
    after = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert not (result.folder / "adapter" / "fitune_reference").exists()
    assert manifests.read(result.folder / "manifest.json")["model"]["continues"]["adapter"] == str(start)


def test_a_failing_reward_ends_the_run_and_it_can_be_resumed(
    rl_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.py").write_text(
        "import os\n"
        "def judge(answers):\n"
        "    calls = int(os.environ['CALLS']) + 1\n"
        "    os.environ['CALLS'] = str(calls)\n"
        "    return [float('nan') if calls == 4 else len(a) for a in answers]\n"
    )
    monkeypatch.setenv("CALLS", "0")
    settings = rl_settings(
        "grpo", rl={"rewards": [f"{tmp_path}/judge.py:judge"], "num_iterations": 1}, train__max_steps=3
    )
    with pytest.raises(RewardError, match=r"step 2: the reward .*judge gave nan.*the 1 steps before are kept"):
        fitune.train(settings)
    folder = Path(settings.run.folder) / "one"
    assert manifests.read(folder / "manifest.json")["status"] == "failed"
    result = fitune.train(resume=folder)
    assert (result.status, result.steps) == ("finished", 3)


def test_a_reward_that_fails_at_once_costs_no_training(rl_settings: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def judge(answers):\n    return [1.0]\n")
    with pytest.raises(RewardError, match=r"tried before training: .* returned 1 numbers"):
        fitune.train(rl_settings("ppo", rl={"rewards": [f"{tmp_path}/broken.py:judge"]}))
    assert not (tmp_path / "runs" / "one").exists()


def test_prompts_that_leave_no_room_are_refused(rl_settings: Any) -> None:
    with pytest.raises(
        DataError, match=r"10 prompts leave no room for an answer of rl.max_new_tokens 250.*too_long: drop"
    ):
        fitune.train(rl_settings("grpo", rl={"max_new_tokens": 250}))


def test_an_adapter_of_another_template_or_none_is_refused(rl_settings: Any, settings_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no run or adapter"):
        fitune.train(rl_settings("grpo", lora__continue_from="nowhere"))
    fitune.train(settings_of(run__name="start", train__max_steps=1))
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>\n{% endfor %}assistant: "
    )
    with pytest.raises(ModelError, match="another chat template"):
        fitune.train(rl_settings("grpo", lora__continue_from="start", model__chat_template=str(template)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "ppo"}, "rl.rewards is empty"),
        ({"method": "grpo", "rl.rewards": "exact", "rl.num_generations": "1"}, "rl.num_generations is 1"),
        ({"method": "grpo", "rl.rewards": "exact", "rl.gae_lambda": "0.9"}, "rl.gae_lambda is set, and method is grpo"),
        ({"method": "ppo", "rl.rewards": "exact", "rl.advantage": "rloo"}, "rl.advantage is set, and method is ppo"),
        ({"method": "ppo", "rl.rewards": "exact", "train.tuning": "full"}, "train.tuning is full"),
        ({"method": "ppo", "rl.rewards": "exact", "lora.dropout": "0.1"}, "lora.dropout is 0.1"),
        ({"method": "ppo", "rl.rewards": "exact", "rl.minibatches": "9"}, "rl.minibatches is 9"),
        ({"method": "ppo", "rl.rewards": "exact", "eval.samples": "0"}, "eval.samples is 0"),
        ({"rl.rewards": "exact"}, "rl.rewards is set, and method is sft"),
        ({"lora.continue_from": "x", "lora.rank": "4"}, "lora.rank is set, and lora.continue_from continues"),
    ],
)
def test_settings_that_do_not_go_together(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(None, flags)
    assert words in str(raised.value)


@pytest.fixture
def judge(settings_of: Any, tmp_path: Path) -> Path:
    """A reward run over the same base."""
    path = tmp_path / "pairs.jsonl"
    words = ["cat", "barn", "mat", "piglet"]
    rows = [{"prompt": f"say {word}", "chosen": word[::-1], "rejected": word} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = settings_of(
        method="reward", run__name="judge", data__train=str(path), data__eval_share=0.25, train__max_steps=2,
        eval__samples=0,
    )  # fmt: skip
    return fitune.train(run).folder


def test_a_reward_run_scores_what_fitune_score_scores_and_the_policy_learns_from_it(
    judge: Path, rl_settings: Any
) -> None:
    settings = rl_settings("ppo", rl={"rewards": [f"run:{judge}", "0.1*length:2"]}, data__form="prompt_completion")
    result = fitune.train(settings)
    assert result.status == "finished"
    kept = [row for row in read_rows(result.folder / "samples.jsonl") if row["moment"] == "rollout"]
    alone = open_reward_model(open_target(str(judge), device="cpu", precision="fp32", for_reward=True))
    scale = read_facts(judge / "adapter")["reward"]
    for row in kept:
        if not row["stopped"]:
            continue  # its tokens cannot be had back from its text
        messages = ({"role": "user", "content": row["asked"]}, {"role": "assistant", "content": row["answer"]})
        wanted = (alone.rewards([Example(messages, None, 0)])[0] - scale["mean"]) / scale["std"]
        assert row["rewards"][f"run:{judge}"] == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert {"reward_length:2", f"reward_run:{judge}"} <= read_rows(result.folder / "metrics.jsonl")[1].keys()


def test_a_reward_run_over_another_base_template_or_method_is_refused(
    judge: Path, rl_settings: Any, settings_of: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    judged = {"rewards": [f"run:{judge}"]}
    with pytest.raises(ModelError, match="belongs to another base"):
        fitune.train(rl_settings("grpo", rl=judged, model__name=str(tiny_llama)))
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>\n{% endfor %}assistant: "
    )
    with pytest.raises(ModelError, match=r"reward model in .* was trained with another chat template"):
        fitune.train(rl_settings("grpo", rl=judged, model__chat_template=str(template)))
    plain = fitune.train(settings_of(run__name="start", train__max_steps=1)).folder
    with pytest.raises(ModelError, match="contains no reward model"):
        fitune.train(rl_settings("grpo", rl={"rewards": [f"run:{plain}"]}))
