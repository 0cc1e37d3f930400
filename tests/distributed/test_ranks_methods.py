"""Every method on two ranks takes the steps that one process takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from on_ranks import check_equal, run_on

import fitune

pytestmark = pytest.mark.slow

SHORT = {"train__epochs": 1.0, "train__max_steps": 2, "eval__every_steps": 2}
RL = {
    "eval__samples": 3,
    "rl__truncated_reward": None,
    "rl__max_new_tokens": 6,
    "rl__num_generations": 3,
    "rl__generation_batch_size": 7,
    "train__batch_size": 3,
    "train__micro_batch_size": 1,
}
METHODS = {
    "reward": {},
    "dpo": {"dpo__reference": "precomputed"},
    "orpo": {},
    "simpo": {},
    "kto": {},
    "grpo": {**RL, "rl__num_iterations": 1},
    "ppo": {**RL, "rl__minibatches": 2, "rl__num_iterations": 2, "rl__num_generations": 1},
}


# Tells any two answers apart, and looks at no other.
REWARD = """
def hashed(answers):
    return [sum(map(ord, answer)) % 7 / 7 for answer in answers]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Method → its rows."""
    folder, words = tmp_path_factory.mktemp("methods"), "cat barn mat piglet sun hen foxes cow ant bee".split()
    pairs = [
        {"prompt": f"say {' '.join(words[: 1 + at % 3])} {word}", "chosen": word[::-1], "rejected": word[1:] + " no"}
        for at, word in enumerate(words)
    ]
    judged = [
        {"prompt": pair["prompt"], "completion": pair["chosen" if at % 2 else "rejected"], "label": bool(at % 2)}
        for at, pair in enumerate(pairs)
    ]
    plain = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    made = {}
    for name, rows in {"pairs": pairs, "judged": judged, "plain": plain}.items():
        made[name] = folder / f"{name}.jsonl"
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARD)
    kinds = {"kto": "judged", "grpo": "plain", "ppo": "plain"}
    return {method: made[kinds.get(method, "pairs")] for method in METHODS}


def test_two_ranks_step_as_one_process(tmp_path, job, files):
    jobs, reward = {}, f"{files['ppo'].parent / 'mine.py'}:hashed"
    for folder in ("one", "two"):
        jobs[folder] = [
            job(tmp_path / folder, name, method=name, data__train=str(files[name]), **{**SHORT, **changed})
            for name, changed in METHODS.items()
        ]
        for one in jobs[folder]:
            if "rl" in one["settings"]:
                one["settings"]["rl"]["rewards"] = [reward]
    made = [fitune.train(fitune.Settings(**one["settings"])).folder for one in jobs["one"]]
    results = run_on(2, jobs["two"])[0]
    assert [result.get("error") for result in results] == [None] * len(METHODS)
    for folder, result in zip(made, results, strict=True):
        check_equal(folder, Path(result["folder"]))
