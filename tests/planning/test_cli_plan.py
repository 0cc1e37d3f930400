"""`fitune plan` as a user calls it, on tiny configs."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import click
import pytest

from fitune import cli as frame
from fitune import console
from fitune.errors import ModelError, PlanError, SettingsError

CONFIG = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
SMALL = ("--seq-len", "64", "--train.batch_size", "2", "--data.eval_share", "0")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    console.stdout_console.cache_clear()
    console.stderr_console.cache_clear()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "config.json")


def run(*words: str) -> int | None:
    """Exit status of `fitune plan WORDS`."""
    return frame.cli.main(["plan", *words], prog_name="fitune", standalone_mode=False)


def test_it_fits(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--gpu", "RTX 4090", *SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fits ") and "RTX 4090" in lines[0] and "to spare" in lines[0]
    text = "\n".join(lines)
    for word in ("allocated", "reserved", "nvidia-smi", "weights", "adapters", "the peak: step 2", "load"):
        assert word in text, word


def test_it_does_not_fit_is_status_3(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--budget", "530MiB", *SMALL) == 3
    said = capsys.readouterr().out
    assert said.startswith("does not fit ") and ("\nfits " in said or "nothing that fitune may change" in said)


def test_without_a_card_there_is_no_verdict(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fitune.planning.gpus.catalogue.present", lambda: None)
    assert run(model, *SMALL) == 0
    said = capsys.readouterr().out
    assert said.startswith("needs ") and "no verdict" in said and "no GPU was found or named" in said


def test_json_is_whole_and_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, "--gpu", "RTX 4090", "--json", *SMALL)
    found = json.loads(capsys.readouterr().out)
    assert sum(found["parts"].values()) == found["allocated_peak_bytes"] < found["reserved_peak_bytes"]
    assert sum(found["smi_parts"].values()) == found["smi_peak_bytes"]
    assert found["fits"] is True and found["scenario"]["tuning"] == "lora" and found["config_from"] == model


def test_settings_are_those_of_train(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: {json.dumps(model)}}}\nlora: {{rank: 4}}\n")
    run(str(recipe), "--budget", "16GiB", "--json", "--train.gradient_checkpointing", *SMALL)
    scenario = json.loads(capsys.readouterr().out)["scenario"]
    assert scenario["rank"] == 4 and scenario["gradient_checkpointing"] is True
    with pytest.raises(SettingsError, match='did you mean "rank"'):
        run(model, "--lora.rnak", "4")


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gpu", "list", "--json") is None
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 60 and all(row["source"] for row in rows)


def test_a_longer_row_needs_more(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs = []
    for length in ("64", "256"):
        run(model, "--budget", "16GiB", "--json", *SMALL, "--seq-len", length)
        needs.append(json.loads(capsys.readouterr().out)["allocated_peak_bytes"])
    assert needs[0] < needs[1]


def test_the_longest_real_batch_counts(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "The pig", "completion": "igpay " * count} for count in (1, 2, 20, 10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (str(tiny_model("llama")), "--data", str(file), "--budget", "16GiB", "--json", "--data.eval_share", "0")
    found = {}
    for packing in ("off", "auto"):
        run(*words, "--data.packing", packing, "--train.batch_size", "2")
        found[packing] = json.loads(capsys.readouterr().out)["scenario"]
    padded, packed = found["off"], found["auto"]
    assert (padded["rows"], padded["batch"]) == ("padded", 2) and (packed["rows"], packed["batch"]) == ("packed", 1)
    # The two longest rows side by side are shorter than two rows padded to the longest.
    assert padded["seq_len"] < packed["seq_len"] < 2 * padded["seq_len"]
    assert 0 < padded["label_share"] < 1


def test_the_largest_pass_of_real_rows() -> None:
    from fitune.config.settings_loader import load_settings
    from fitune.training.plan_scenario import largest_pass_of

    rows = [(10, 3), (40, 5), (20, 18), (30, 4)]
    padded = largest_pass_of(load_settings(None, {"train.batch_size": 2, "data.packing": "off"}), rows)
    # Two rows of 40: 78 positions predict something; the most that two rows train is 18 + 5.
    assert (padded.longest_tokens, padded.pack_tokens) == (40, None) and padded.label_share == 23 / 78
    whole = {"train.batch_size": 4, "data.packing": "auto"}
    # Packs of a step of four rows hold at most two of the longest: 80 tokens, though all four have 100.
    packed = largest_pass_of(load_settings(None, {**whole, "train.micro_batch_size": 2}), rows)
    assert packed.pack_tokens == 80 and packed.label_share == 30 / 79
    assert largest_pass_of(load_settings(None, whole), rows).pack_tokens == 100
    assert largest_pass_of(load_settings(None, {**whole, "train.batch_size": 1}), rows).pack_tokens == 40


def test_data_without_a_tokenizer_says_what_to_do(model: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("a\nb\n")
    with pytest.raises(ModelError, match="give --seq-len"):
        run(model, "--data", str(file), "--budget", "16GiB")


def test_assumed_lengths_are_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, "--budget", "16GiB", "--data.eval_share", "0", "--train.batch_size", "1")
    assert "rows of 512 tokens are assumed" in capsys.readouterr().out  # the model has no more positions
    run(model, "--budget", "16GiB", *SMALL, "--seq-len", "600")
    assert "600 tokens and the model has 512" in capsys.readouterr().out


def test_pictures_are_written(model: str, tmp_path: Path) -> None:
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    run(model, "--budget", "16GiB", "--svg", str(svg), "--html", str(html), *SMALL)
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")
    assert "<svg" in html.read_text() and "fitune" in html.read_text()


def test_the_closed_form_stands_beside(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, "--budget", "16GiB", "--explain", *SMALL)
    assert "closed form" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["seq-len", "batch", "rank"])
def test_the_question_turned_round(what: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--budget", "620MiB", "--max", what, "--json", *SMALL) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["max"] == what and found["value"] >= 1 and found["plan"]["fits"]
    if found["too_large"] is not None:
        assert found["too_large"] > found["value"] and not found["too_large_plan"]["fits"]


def test_which_models_fit(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wide").mkdir()
    wide = tmp_path / "wide" / "config.json"
    wide.write_text(json.dumps({**CONFIG, "vocab_size": 500_000, "hidden_size": 512}))
    status = run(model, str(wide), "none/such.json", "--max", "model", "--budget", "700MiB", *SMALL)
    shown = capsys.readouterr()
    assert status == 0 and "".join(shown.out.splitlines()[:2]).startswith("the largest that fits")
    assert "such.json" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "b"), "several models need --max model"),
        (("--grid", "--max", "batch"), "cannot be combined"),
        (("--gpu", "T4", "--budget", "16GiB"), "contradict each other"),
        (("x.json", "--model.name", "y.json"), "contradict each other"),
        (("--max", "width"), "width"),
        (("--seq-len", "0"), "0"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str, model: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        run(*([model] if not words[0].endswith((".json", "a")) else []), *words)


def test_bad_input_is_one_sentence(model: str) -> None:
    with pytest.raises(PlanError, match="did you mean"):
        run(model, "--gpu", "RTX 4091", *SMALL)
    with pytest.raises(PlanError, match="banana"):
        run(model, "--budget", "banana", *SMALL)
    with pytest.raises(SettingsError, match="cannot be trained"):
        run(model, "--budget", "16GiB", "--model.quantization", "int8", "--train.tuning", "full", *SMALL)


def test_from_the_cache_nothing_heavy_is_imported(model: str) -> None:
    words = [model, "--gpu", "RTX 4090", *SMALL]
    run(*words)
    code = (
        f"import sys\nfrom fitune.cli import main\nsys.argv = ['fitune', 'plan', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def written(folder: Path, **changes: Any) -> str:
    (folder / "other.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder / "other.json")


def test_an_unknown_architecture_is_answered_by_the_closed_form_and_labelled(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = written(tmp_path, model_type="of_their_own")
    assert run(unknown, "--budget", "16GiB", *SMALL) == 3
    said = capsys.readouterr().out
    assert said.startswith("by the closed form only, not traced: no verdict for") and "does not know it" in said
    run(unknown, "--budget", "16GiB", "--json", *SMALL)
    found = json.loads(capsys.readouterr().out)
    assert found["traced"] is False and sum(found["parts"].values()) == found["allocated_peak_bytes"]


def test_code_that_cannot_be_traced_names_the_call(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))  # other tests ask the same question, and it can be traced there
    from transformers.models.llama import modeling_llama

    def boom(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", boom)
    assert run(model, "--budget", "16GiB", *SMALL, "--seq-len", "48") == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "by the closed form only" in said and "modeling_llama.py, line" in said and "no meta kernel" in said
    assert "self.rotary_emb(" in said


def test_code_that_goes_token_by_token_is_given_up(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))
    monkeypatch.setattr("fitune.planning.trace.recorder.MOST_STORAGES", 100)
    assert run(model, "--budget", "16GiB", *SMALL, "--seq-len", "40") == 3
    assert "more than 100 tensors" in " ".join(capsys.readouterr().out.split())


def test_other_kinds_of_models_and_refused_configs_are_errors(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a causal language model"):
        run(written(tmp_path, model_type="t5", d_model=64), "--budget", "16GiB", *SMALL)
    with pytest.raises(ModelError, match="not a multiple of the number of attention heads"):
        run(written(tmp_path, num_attention_heads=5, num_key_value_heads=5), "--budget", "16GiB", *SMALL)
    with pytest.raises(ModelError, match="hidden_size is 0; use a whole number"):
        run(written(tmp_path, hidden_size=0), "--budget", "16GiB", *SMALL)


@pytest.mark.slow
def test_less_than_the_weights_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = written(tmp_path, vocab_size=500_000, hidden_size=256)
    assert run(wide, "--budget", "700MiB", *SMALL) == 3
    assert "not even the loaded model fits" in capsys.readouterr().out


@pytest.mark.slow
def test_the_ladder_finds_what_fits_and_respects_what_is_fixed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seq-len", "512", "--data.eval_share", "0", "--train.batch_size", "16")

    def need(*more: str) -> int:
        run(model, *words, *more, "--budget", "16GiB", "--json")
        return json.loads(capsys.readouterr().out)["smi_peak_bytes"]

    asked, least = need(), need("--train.micro_batch_size", "1")
    budget = f"{(asked + least) / 2 / 2**20:.0f}MiB"
    assert run(model, *words, "--budget", budget, "--ladder", "--memory.margin", "0", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked_smi_peak_bytes"] == asked and not found["asked_fits"] and found["fits"]
    assert found["changes"] and set(found["changes"]) <= {"train.micro_batch_size", "train.gradient_checkpointing"}
    assert sum(step["saves_bytes"] for step in found["steps"]) == asked - found["plan"]["smi_peak_bytes"]
    fixed = ("--train.micro_batch_size", "16", "--train.gradient_checkpointing", "false")
    assert run(model, *words, *fixed, "--budget", budget, "--ladder", "--memory.margin", "0") == 3
    said = capsys.readouterr().out.replace("\n", " ")
    assert "nothing fits" in said and "Cheapest way out" in said and "memory.may_change" in said


@pytest.mark.slow
def test_a_plan_that_does_not_fit_ends_with_what_would(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seq-len", "512", "--data.eval_share", "0", "--train.batch_size", "16", "--memory.margin", "0")

    def need(*more: str) -> int:
        run(model, *words, *more, "--budget", "16GiB", "--json")
        return json.loads(capsys.readouterr().out)["smi_peak_bytes"]

    budget = f"{(need() + need('--train.micro_batch_size', '1')) / 2 / 2**20:.0f}MiB"
    assert run(model, *words, "--budget", budget) == 3
    end = capsys.readouterr().out.splitlines()[-2:]
    assert end[0].startswith("fits ") and "--train.micro_batch_size " in end[0] and "then it needs" in end[1]


def test_the_ladder_needs_a_card(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune.planning.gpus.catalogue.present", lambda: None)
    with pytest.raises(click.UsageError, match="--ladder needs a card"):
        run(model, *SMALL, "--ladder")
    with pytest.raises(click.UsageError, match="cannot be combined"):
        run(model, *SMALL, "--ladder", "--grid")


def test_the_ladder_is_written_as_a_page_and_a_picture(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--svg", str(tmp_path / "a.svg"), "--html", str(tmp_path / "a.html"))
    assert run(model, *SMALL, "--budget", "16GiB", "--ladder", *files) == 0
    assert "fits as asked" in capsys.readouterr().out
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (
        "fits&#160;as&#160;asked" in (tmp_path / "a.html").read_text()
        or "fits as asked" in (tmp_path / "a.html").read_text()
    )
