"""What the tests of preference methods share: pairs as a file and as token rows, gradients, a run cut off and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fitune.data.token_rows import PairRow, TokenRow
from fitune.runs import manifest as manifests
from fitune.training.run import RunResult, train

WORDS = ("cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs, each of them twice."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] + "x"} for word in WORDS * 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def make_pairs() -> Callable[[int], list[PairRow]]:
    """Pairs of random ids; the prompt is three tokens, answers are one to five and end with token 2."""

    def make(count: int) -> list[PairRow]:
        generator = torch.Generator().manual_seed(3)

        def ids(length: int) -> tuple[int, ...]:
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

    return make


@pytest.fixture(scope="session")
def padded() -> Callable[[list[PairRow]], dict[str, torch.Tensor]]:
    """Pairs as TRL's trainers without a reference take them: ids, mask and labels of both sides, padded with 0."""

    def make(pairs: list[PairRow]) -> dict[str, torch.Tensor]:
        batch = {}
        for name, rows in (("chosen", [p.chosen for p in pairs]), ("rejected", [p.rejected for p in pairs])):
            width = max(row.num_tokens for row in rows)
            for part, pad, values in (
                ("input_ids", 0, [row.input_ids for row in rows]),
                ("attention_mask", 0, [(1,) * row.num_tokens for row in rows]),
                (
                    "labels",
                    -100,
                    [[i if on else -100 for i, on in zip(r.input_ids, r.trained, strict=True)] for r in rows],
                ),
            ):
                batch[f"{name}_{part}"] = torch.tensor([[*one, *[pad] * (width - len(one))] for one in values])
        return batch

    return make


@pytest.fixture(scope="session")
def away() -> Callable[[Any], None]:
    """Moves a fresh adapter away from its base, by the same numbers each time."""

    @torch.no_grad()
    def move(model: Any) -> None:
        for name, value in model.named_parameters():
            if "lora_B.default" in name:
                value.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))

    return move


@pytest.fixture(scope="session")
def gradients_of() -> Callable[[Any, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of a loss by the names of the trained parameters."""

    def take(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    return take


@pytest.fixture
def cut_and_resumed() -> Callable[[RunResult], bool]:
    """Whether a run of six steps, cut off after its checkpoint at step four and resumed, ends with the same adapter."""

    def check(whole: RunResult) -> bool:
        folder = whole.folder.parent / "cut"
        shutil.copytree(whole.folder, folder)
        shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
        manifests.update(folder / "manifest.json", status="interrupted")
        again = train(resume=str(folder))
        one, other = (load_file(run.saved / "adapter_model.safetensors") for run in (whole, again))
        return all(torch.equal(one[name], other[name]) for name in one)

    return check
