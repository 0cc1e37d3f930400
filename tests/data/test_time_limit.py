"""Templates that loop or print without end stop with the row, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fitune.data.prepare import prepare
from fitune.data.render import renderer as renderer_module
from fitune.data.render.renderer import Renderer
from fitune.data.render.time_limit import TemplateTooSlow
from fitune.errors import DataError

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "fine", "completion": "yes"}, {"prompt": "odd", "completion": "no"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def renderer_of(folder: Path, what: str) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Renderer(
        tokenizer, "{% if messages[0].content == 'odd' %}" + what + "{% endif %}" + PLAIN, (tokenizer.eos_token_id,)
    )


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_a_template_that_loops_for_a_row(path: str, bad_rows: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(renderer_module, "SLOWEST_SECONDS", 0.2)
    with pytest.raises(
        TemplateTooSlow, match=r"row 2: the chat template takes more than 0\.2 s for one conversation: it loops"
    ):
        prepare(path, None, renderer=renderer_of(tiny_llama, LOOP), bad_rows=bad_rows)


def test_a_template_that_prints_megabytes_for_a_row(path: str, tiny_llama: Path):
    with pytest.raises(DataError, match=r"row 2: the chat template writes 2,\d{3},\d{3} characters for 1 messages"):
        prepare(
            path, None, renderer=renderer_of(tiny_llama, "{% for a in range(20000) %}" + "y" * 100 + "{% endfor %}")
        )
