"""report.html stands alone and tells what the run's files tell; the card has the hub's metadata."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from fitune.config.sections import Settings
from fitune.runs.html_report import changed_settings, write_report
from fitune.runs.model_card import write_card
from fitune.runs.run_folder import RunFolder

DEFAULTS = Settings().model_dump(mode="json")
MANIFEST = {
    "status": "finished",
    "started": "2026-01-01T00:00:00Z",
    "ended": "2026-01-01T00:01:00Z",
    "method": "sft",
    "tuning": "lora",
    "model": {"name": "org/tiny", "kind": "hub"},
    "data": {"train": "a.jsonl", "train_rows": 1234, "eval_rows": 1, "hashes": {"a.jsonl": "abc"}},
    "parameters": {"trained": 1, "total": 100, "share": 0.01},
    "versions": {"torch": "2"},
    "results": {"before": {"loss": 3.0}, "after": {"loss": 1.0}},
}
VOID = {"meta", "line", "path", "br", "polyline", "polygon", "rect"}


class Checked(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "my <run>")
    (run.path / "adapter").mkdir(parents=True)
    run.manifest.write_text(json.dumps(MANIFEST))
    settings = Settings().model_dump(mode="json")
    settings["lora"]["rank"] = 99
    run.settings.write_text(yaml.safe_dump(settings))
    rows = [{"step": step, "kind": "train", "loss": 4.0 - step, "learning_rate": 0.1} for step in range(3)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"step": 0, "row": 1, "asked": "pig & <dog>", "wanted": "igpay ogday"}
    samples = [{**sample, "moment": "before", "answer": "no"}, {**sample, "moment": "after", "answer": "igpay atcay"}]
    run.samples.write_text("".join(json.dumps(row) + "\n" for row in samples))
    return run


def test_the_report_is_well_formed_alone_and_complete(run: RunFolder):
    page = write_report(run, DEFAULTS).read_text()
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    assert not re.search(r"(src|href)=|https?://|@import", page)
    for part in (
        "pig &amp; &lt;dog&gt;",
        "<mark>igpay</mark> atcay",
        "lora.rank",
        "training from 4",
        "3.0000",
        "1.0000",
        "3 → 1",
        "1:00",
    ):
        assert part in page, part
    assert "eval.samples</td>" not in page, "settings at their defaults are left out"


def test_a_run_that_has_just_begun_has_a_report_too(run: RunFolder):
    run.metrics.write_text("")
    run.samples.write_text("")
    assert "Facts" in write_report(run, DEFAULTS).read_text()


def test_training_and_held_out_loss_share_a_chart_and_tell_their_values(run: RunFolder):
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 0, "kind": "eval", "loss": 3.5}) + "\n")
        file.write(json.dumps({"step": 2, "kind": "eval", "loss": 2.5}) + "\n")
    page = write_report(run, DEFAULTS).read_text()
    assert page.count("<figure") == 2, "the loss, and the learning rate"
    assert "loss: training from 4 at step 0 to 2 at step 2" in page and "held out from 3.5 at step 0" in page
    assert "<title>held out, step 2: 2.5</title>" in page


def test_of_many_held_out_rows_the_worst_come_first(run: RunFolder):
    rows = [
        {
            "step": 1,
            "moment": "after",
            "row": row,
            "asked": f"q{row}",
            "answer": "igpay" if row % 2 else "no",
            "wanted": "igpay",
        }
        for row in range(8)
    ]
    run.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run, DEFAULTS).read_text()
    assert "the worst answers first" in page and page.index(">q6<") < page.index(
        "<summary>the 4 better ones"
    ) < page.index(">q1<")


def test_the_card_begins_with_metadata_and_lies_beside_the_weights(run: RunFolder):
    text = write_card(run, DEFAULTS).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft" and head["base_model"] == "org/tiny" and "fitune" in head["tags"]
    assert (run.adapter / "README.md").read_text() == text
    assert (
        "1,234 rows" in text
        and "| loss | 3.0000 | 1.0000 |" in text
        and changed_settings(run, DEFAULTS) == [("lora.rank", 99)]
    )


@pytest.mark.parametrize(("kind", "by_name"), [("hub", True), ("folder", True), ("builtin", False), ("gguf", False)])
def test_the_card_names_the_base_only_where_others_find_it(run: RunFolder, kind: str, by_name: bool):
    run.manifest.write_text(json.dumps({**MANIFEST, "model": {"name": "tiny", "kind": kind}}))
    text = write_card(run, DEFAULTS).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert ("base_model" in head) is (kind == "hub") and head["license"] == "unknown"
    assert ("AutoPeftModelForCausalLM" in text) is by_name


def test_the_report_puts_predicted_beside_measured_memory(run: RunFolder):
    memory = {
        "predicted": {"allocated_bytes": 1000 * 2**20},
        "measured": {"allocated_bytes": 1020 * 2**20, "reserved_bytes": 1100 * 2**20},
        "ladder": {"steps": [{"name": "8-bit <Adam>", "saves_bytes": 2**30, "quality": "none"}]},
        "step_downs": [{"at": "at step 3", "to": "micro-batches of 2 rows"}],
    }
    run.manifest.write_text(json.dumps({**MANIFEST, "memory": memory}))
    page = write_report(run, DEFAULTS).read_text(encoding="utf-8")
    Checked().feed(page)
    for text in ("<h2>Memory</h2>", "1,000 MiB", "1,020 MiB", "+2.0%", "8-bit &lt;Adam&gt;", "at step 3"):
        assert text in page
