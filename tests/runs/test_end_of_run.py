"""The last words of a run."""

from __future__ import annotations

import json
from pathlib import Path

from fitune.runs.end_of_run import held_out_rows, last_words


def made(folder: Path, method: str = "sft", answered: bool = True) -> Path:
    folder.mkdir(parents=True)
    results = {"before": {"loss": 3.21, "word_accuracy": 0.0}, "after": {"loss": 0.806, "word_accuracy": 0.715}}
    manifest = {"status": "finished", "method": method, "results": results if answered else {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {
            "step": step,
            "moment": moment,
            "row": row,
            "asked": f"the pig {row}",
            "answer": answer,
            "wanted": "ethay\nigpay",
        }
        for step, moment, answer in ((0, "before", "a pig " * 40), (9, "after", "ethay igpay"))
        for row in range(5)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if answered))
    return folder


def test_three_rows_the_scores_and_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = last_words(made(Path("runs/mine")), width=60)
    assert lines[0] == "3 of 5 held-out rows, before and after training:"
    assert lines[2:6] == [
        "  prompt     the pig 0",
        "  before     a pig a pig a pig a pig a pig a pig a pig a pi…",
        "  after      ethay igpay",
        "  reference  ethay igpay",
    ]
    assert max(len(line) for line in lines[:16]) <= 60
    assert "held-out rows: loss 3.21 → 0.806, word accuracy 0 → 0.715" in lines
    said = "\n".join(lines[lines.index("next:") :])
    assert "fitune chat mine " in said and "fitune export mine --to gguf" in said and "runs/mine/report.html" in said
    assert len(held_out_rows(Path("runs/mine"))) == 5


def test_a_reward_model_is_scored_with_and_a_run_elsewhere_is_named_by_its_folder(tmp_path):
    lines = last_words(made(tmp_path / "judge", "reward", answered=False))
    assert lines[:2] == ["", "next:"] and f"fitune score {tmp_path / 'judge'} --data FILE" in lines[2]
