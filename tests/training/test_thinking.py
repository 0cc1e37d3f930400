"""What is learnt is what is asked for: thinking on and off, and tool calls, trained and asked through the command line's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl

import fitune
from fitune.data.read.sources import DataOptions
from fitune.evaluation.evaluate import evaluate
from fitune.evaluation.generation import Sampling, complete
from fitune.evaluation.inference_model import open_target

TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
WORDS = ("cat", "dog", "sun", "map")
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "It."}}},
    },
}


def asked(word: str) -> list[dict]:
    return [{"role": "user", "content": word}]


@pytest.fixture
def learn(tmp_path, settings_of, tiny_model):
    """Train a small model on rows until it knows them; returns the run's folder and the data file."""

    def train(rows: list[dict], epochs: int, **more) -> tuple[str, str]:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = tiny_model(template=TEMPLATE, max_position_embeddings=1024, initializer_range=0.1)
        settings = settings_of(
            model__name=str(model), data__train=str(data), data__eval_share=0.0, train__tuning="full",
            train__epochs=epochs, train__batch_size=len(rows), train__learning_rate=5e-3, run__checkpoint_steps=1000,
            **more,
        )  # fmt: skip
        return str(fitune.train(settings).folder), str(data)

    return train


def answers(folder: str, thinking: str) -> list[tuple[str, str]]:
    """(reasoning, answer) of each word."""
    target = open_target(folder, device="cpu", precision="fp32", thinking=thinking)
    prompts = [target.renderer.prompt_ids(asked(word)) for word in WORDS]
    said = complete(target.model, target.renderer, prompts, Sampling(60))
    assert all(one.stopped for one in said)
    return [(one.reasoning, one.text) for one in said]


@pytest.mark.slow
def test_the_mode_that_is_asked_for_answers(learn):
    plain = [{"messages": [*asked(word), {"role": "assistant", "content": word[::-1]}]} for word in WORDS]
    thought = [
        {
            "messages": [
                *asked(word),
                {"role": "assistant", "content": word.upper(), "reasoning_content": f"it is {word}"},
            ]
        }
        for word in WORDS
    ]
    folder, data = learn([*plain, *thought], epochs=150)
    assert answers(folder, "off") == [("", word[::-1]) for word in WORDS]
    assert answers(folder, "on") == [(f"it is {word}", word.upper()) for word in WORDS]
    target = open_target(folder, device="cpu", precision="fp32")
    assert target.renderer.asking.thinking is None  # both were trained, so the template decides
    # Each row is asked as it was trained.
    assert evaluate(target, data, DataOptions(), max_new_tokens=60).metrics["exact_match"] == 1.0


@pytest.mark.slow
def test_rows_without_reasoning_make_a_model_that_is_asked_for_none(learn):
    rows = [{"messages": [*asked(word), {"role": "assistant", "content": word[::-1]}]} for word in WORDS]
    folder, _ = learn(rows, epochs=150)
    assert open_target(folder, device="cpu").renderer.asking.thinking is False
    assert answers(folder, "auto") == [("", word[::-1]) for word in WORDS]


@pytest.mark.slow
def test_a_tool_call_is_made_and_measured(learn):
    rows = [
        {
            "tools": [TOOL],
            "messages": [
                *asked(word),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"type": "function", "function": {"name": "look_up", "arguments": json.dumps({"word": word})}}
                    ],
                },
            ],
        }
        for word in WORDS
    ]
    folder, data = learn(rows, epochs=150)
    target = open_target(folder, device="cpu", precision="fp32")
    found = evaluate(target, data, DataOptions(), max_new_tokens=120)
    assert found.metrics["calls_right"] == 1.0
    assert all('"look_up"' in row["answer"] and row["stopped"] for row in found.rows)
