"""llama.cpp's converter: fetched whole or not at all, run beside fitune, its refusals in a sentence. A stand-in for it here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import ModelError
from fitune.exporting.export import export
from fitune.exporting.gguf import converter
from fitune.exporting.gguf.converted_model import refuse_unconverted
from fitune.exporting.gguf.sentencepiece_file import write_sentencepiece
from fitune.models.load_base import load_config
from fitune.models.source import resolve
from fitune.models.tokenizer import load_tokenizer

REFUSES = 'import sys\nsys.exit("ERROR:hf-to-gguf:Model OPTForCausalLM is not supported")\n'
# Writes down what it was asked with, in place of a file.
NOTES = (
    "import os, sys\n"
    'out = sys.argv[sys.argv.index("--outfile") + 1]\n'
    'open(out, "w").write(" ".join(sorted(os.listdir(sys.argv[1]))) + "|" + " ".join(sys.argv[4:]))\n'
)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`checkout(script)` → a folder that LLAMA_CPP names, its converter being that script."""

    def make(script: str) -> Path:
        folder = tmp_path / "llama.cpp"
        folder.mkdir(exist_ok=True)
        (folder / converter.SCRIPT).write_text(script)
        monkeypatch.setenv("LLAMA_CPP", str(folder))
        return folder

    return make


def test_a_family_that_llama_cpp_lacks_is_refused_before_a_weight_is_read(
    checkout: Any, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkout(REFUSES)
    monkeypatch.setattr("fitune.exporting.export.open_target", None)
    with pytest.raises(ModelError, match=r"refuses this model: llama\.cpp does not know OPTForCausalLM"):
        export(str(tiny_model("opt")), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "NotImplementedError: BPE pre-tokenizer was not recognized - update get_vocab_base_pre()",
            "splitting of text",
        ),
        ("FileNotFoundError: File not found: /tmp/x/tokenizer.model", "wants a SentencePiece tokenizer"),
        ("Traceback (most recent call last):\nKeyError: 'rope_theta'", "KeyError: 'rope_theta'"),
        ("", "it gave no reason"),
    ],
)
def test_its_reasons_become_sentences(checkout: Any, tmp_path: Path, said: str, why: str):
    checkout(f"import sys\nsys.exit({said!r})\n")
    with pytest.raises(ModelError, match=why):
        converter.convert(tmp_path, tmp_path / "out.gguf", "f16")


def test_it_is_given_the_tokenizer_and_asked_for_the_vocabulary_alone(
    checkout: Any, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkout(NOTES)
    source = resolve(str(tiny_model("phi3")))
    kept = {}

    def convert(model: Path, out: Path, kind: str, **options: Any) -> None:
        converter.convert(model, out, kind, **options)
        kept["text"] = out.read_text()

    monkeypatch.setattr("fitune.exporting.gguf.converted_model.convert", convert)
    refuse_unconverted(load_config(source), load_tokenizer(source))
    files, _, asked = kept["text"].partition("|")
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files.split())
    assert asked == "--outtype f16 --vocab-only"


def test_a_checkout_without_a_converter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(ModelError, match=r"there is no convert_hf_to_gguf\.py"):
        converter.converter()


def test_without_a_network_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))

    def fails(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: no\nERROR: No matching distribution found for x.\n"
        )

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(ModelError, match=r"No matching distribution found for x\. Check the network.*LLAMA_CPP"):
        converter.converter()
    assert [path.name for path in (tmp_path / "llama.cpp").iterdir()] == [f"{converter.RELEASE}.lock"]


def test_what_is_fetched_is_whole_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))
    calls = []

    def installs(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        packages = Path(command[command.index("--target") + 1])
        whole = packages / converter.VENDORED
        for name in ("conversion", "gguf-py", "tools"):
            (whole / name).mkdir(parents=True)
        (whole / converter.SCRIPT).write_text("")
        (whole / "LICENSE").write_text("")
        (packages / "sentencepiece").mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", installs)
    script = converter.converter()
    assert converter.converter() == script
    assert len(calls) == 1
    names = sorted(path.name for path in script.parent.iterdir())
    assert names == ["LICENSE", "conversion", "convert_hf_to_gguf.py", "gguf-py", "packages"]
    assert [path.name for path in (script.parent / "packages").iterdir()] == ["sentencepiece"]


def test_sentencepieces_file_is_protobuf(tmp_path: Path):
    """By the wire format: tag = field · 8 + kind; lengths and numbers as varints, floats in four bytes."""
    write_sentencepiece(tmp_path / "tokenizer.model", ["a", "▁b"], [0.0, -1.0], [1, 3])
    wanted = (
        b"\x0a\x0a\x0a\x01a\x15\x00\x00\x00\x00\x18\x01"
        b"\x0a\x0d\x0a\x04\xe2\x96\x81b\x15\x00\x00\x80\xbf\x18\x03"
        b"\x12\x07\x18\x02\x20\x02\x98\x02\x01"
    )
    assert (tmp_path / "tokenizer.model").read_bytes() == wanted
