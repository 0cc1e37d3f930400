"""Several turns of a thinking model: each is trained exactly as it is served, at nearly the price of one pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from fitune.data.examples import Example, Message
from fitune.data.packing.bins import pack_rows
from fitune.data.packing.padding import pad_collate
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow
from fitune.ops.label_loss import label_loss
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.ops.tree_attention import use_tree_attention
from fitune.trainers.sampler import epoch_order, rows_together

TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
KEPT = TEMPLATE.replace("loop.index0 > ns.last_query_index", "true")  # the same, history never rewritten
WORDS = (Path(__file__).parents[2] / "src/fitune/data/harvard_sentences.txt").read_text(encoding="utf-8").splitlines()


def renderer_of(folder: Path, template: str) -> Renderer:
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(folder))
    return Renderer(tokenizer, template, (tokenizer.eos_token_id,))


def conversation(number: int, turns: int = 4) -> Example:
    """Questions of one sentence, thoughts of three, answers of one."""
    lines = iter(WORDS[number * turns * 5 :])
    messages: list[Message] = []
    for _ in range(turns):
        messages.append({"role": "user", "content": next(lines)})
        thought = " ".join(next(lines) for _ in range(3))
        messages.append({"role": "assistant", "content": next(lines), "reasoning_content": thought})
    return Example(tuple(messages), None, number)


def rows_of(renderer: Renderer, examples: list[Example]) -> list[TokenRow]:
    return [row for one in examples for row in renderer.tokenize(renderer.render(one, "assistant"))]


def test_four_turns_cost_little_more_than_one_pass(tiny_llama):
    examples = [conversation(number) for number in range(6)]
    separate, once = (rows_of(renderer_of(tiny_llama, text), examples) for text in (TEMPLATE, KEPT))
    assert len(separate) == 24 and len(once) == 6
    assert sum(row.num_trained for row in separate) == sum(row.num_trained for row in once)
    # Two conversations a step, as the sampler hands them out: their turns stay together.
    order = epoch_order(rows_together(separate), seed=3, epoch=0)
    steps = [[separate[at] for at in order[start : start + 8]] for start in range(0, 24, 8)]
    assert all(len({row.row_number for row in step}) == 2 for step in steps)
    computed = sum(tree.num_nodes for step in steps for tree in pack_rows(step, 10_000))
    one_pass = sum(row.num_tokens for row in once)
    assert computed <= 1.3 * one_pass
    assert sum(row.num_tokens for row in separate) > 1.5 * one_pass  # what it would cost without sharing


@pytest.mark.parametrize("turns", [2, 4])
def test_the_loss_of_a_pack_is_that_of_the_turns_one_by_one(tiny_llama, turns: int):
    torch.manual_seed(0)
    rows = rows_of(renderer_of(tiny_llama, TEMPLATE), [conversation(number, turns) for number in range(2)])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    targets = sum(row.num_trained for row in rows)
    with torch.no_grad():
        alone = sum(label_loss(model, pad_collate([row], 0), targets).item() for row in rows)
        use_tree_attention(model)
        (tree,) = pack_rows(rows, 100_000)
        packed = pack_loss(model, to_pack(tree, torch.device("cpu")), targets).item()
    assert tree.num_nodes < tree.row_tokens
    assert packed == pytest.approx(alone, rel=1e-5)
