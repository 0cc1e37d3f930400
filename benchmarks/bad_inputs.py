"""Inputs that are wrong, by the hundred: each must cost a sentence with place, value and remedy, never a traceback.

    python benchmarks/bad_inputs.py              # writes docs/bad-inputs.md
    python benchmarks/bad_inputs.py data         # one group, printed

Every case is a command line of fitune on tiny models, in one process. A case states words that its answer must hold: the
place, the value and what to do. It fails on a traceback, on other words, on more than LIMIT_SECONDS of CPU time, and on
more than LIMIT_BYTES of memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1", COLUMNS="200",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
PAGE = ROOT / "docs" / "bad-inputs.md"
LIMIT_SECONDS, LIMIT_BYTES, MOST_CHARACTERS = 2.0, 2**30, 420
ROWS = '{"prompt": "hi", "completion": "yes"}\n{"prompt": "ho", "completion": "no"}\n'


@dataclass(frozen=True)
class Case:
    """A command and what its answer must hold; ``files`` are written before it, by name."""

    group: str
    name: str
    words: tuple[str, ...]
    holds: tuple[str, ...]
    files: Any = ()
    status: int = 1


@dataclass(frozen=True)
class Answer:
    status: int | str
    said: str
    seconds: float
    grown_bytes: int


def cases() -> Iterator[Case]:
    for make in (settings, yaml_files, data, data_of_methods, models, adapters, exports, rewards, templates, commands):
        yield from make()


# ---- settings


def settings() -> Iterator[Case]:
    wrong = [
        ("lora.rank", "0", "1 or more"), ("lora.rank", "-3", "1 or more"), ("lora.rank", "sixteen", "whole number"),
        ("lora.rank", "1.5", "whole number"), ("lora.alpha", "0", "above 0"), ("lora.alpha", "nan", "above 0"),
        ("lora.dropout", "1", "excluding 1"), ("lora.dropout", "-0.1", "excluding 1"), ("lora.bias", "some", "none"),
        ("lora.init", "random", "gaussian"), ("train.epochs", "0", "above 0"),
        ("train.epochs", "inf", "above 0"), ("train.max_steps", "0", "1 or more"), ("train.batch_size", "0", "1 or more"),
        ("train.micro_batch_size", "3", "train.batch_size"), ("train.learning_rate", "-3", "above 0"),
        ("train.learning_rate", "fast", "number"), ("train.lr_scheduler", "cosinus", "cosine"),
        ("train.warmup_ratio", "2", "to 1"), ("train.optimizer", "adam", "adamw"),
        ("train.seed", "-1", "0 or more"), ("train.tuning", "lorra", "lora"), ("train.max_grad_norm", "0", "above 0"),
        ("data.eval_share", "1.5", "to 1"), ("data.max_length", "0", "1 or more"), ("data.packing", "on", "tree"),
        ("data.loss_on", "answers", "completion"), ("data.too_long", "crop", "cut"), ("data.form", "chatml", "messages"),
        ("data.thinking", "yes", "train"), ("data.columns", "prompt", "prompt=question"), ("eval.samples", "-1", "0 or more"),
        ("eval.best_metric", "bleu", "loss"), ("eval.patience", "0", "1 or more"), ("model.precision", "fp8", "bf16"),
        ("model.device", "gpu", "cuda"), ("model.quantization", "int4", "nf4"), ("model.attention", "flash", "sdpa"),
        ("memory.budget", "16", "GiB"), ("memory.budget", "lots", "GiB"), ("memory.margin", "1", "excluding 1"),
        ("run.report_to", "mlflow", "tensorboard"), ("run.keep_checkpoints", "0", "1 or more"), ("run.name", "../out", "run.name"),
        ("run.name", "a/b", "run.name"), ("export.to", "onnx", "gguf"), ("export.gguf_type", "q9", "q8_0"), ("method", "rlhf", "dpo"),
        ("fit", "on", "auto"), ("rl.temperature", "0", "above 0"), ("rl.rewards", "pig", "pig_latin"),
    ]  # fmt: skip
    for key, value, remedy in wrong:
        more = ("--method", "grpo") if key.startswith("rl.") else ()
        yield Case(
            "settings",
            f"{key}: {value}",
            ("train", *more, "--data.train", "ok.jsonl", f"--{key}", value),
            (key, value, remedy),
        )
    for words, holds in {
        ("--lora.rnak", "8"): ("lora.rnak", "rank"),
        ("--lr", "1e-4"): ("lr", "train.learning_rate"),
        ("--trainer.learning_rate", "1"): ("trainer.learning_rate", "train.learning_rate"),
        ("--trainer.no_such", "1"): ("trainer.no_such", "TrainingArguments"),
        ("--model.quantization", "nf4", "--train.tuning", "full"): ("train.tuning", "full"),
        ("--method", "dpo", "--rl.clip", "0.1"): ("rl.clip", "dpo"),
        ("--train.tuning", "full", "--lora.rank", "4"): ("lora.rank", "full"),
        ("--lora.continue_from", "nothing"): ("lora.continue_from", "nothing"),
        ("--lora.continue_from", "a", "--lora.rank", "3"): ("lora.rank", "continue_from"),
        ("--model.double_quant", "true"): ("model.double_quant", "nf4"),
        ("--model.merge", "gone"): ("gone",),
        ("--lora.targets", "no_proj"): ("lora.targets", "no_proj"),
        ("--lora.modules_to_save", "no_head"): ("lora.modules_to_save", "no_head"),
        ("--run.folder", "ok.jsonl"): ("ok.jsonl", "run.folder"),
        ("--eval.patience", "2", "--data.eval_share", "0"): ("eval.patience", "held"),
    }.items():
        yield Case(
            "settings", " ".join(words), ("train", "--data.train", "ok.jsonl", "--model.name", "MODEL", *words), holds
        )


def yaml_files() -> Iterator[Case]:
    texts = {
        "a key twice": ("train:\n  epochs: 1\n  epochs: 2\n", ("epochs", "twice")),
        "a tab": ("train:\n\tepochs: 1\n", ("bad.yaml", ":2")),
        "a list": ("- a\n- b\n", ("bad.yaml", "mapping")),
        "text": ("just words\n", ("bad.yaml",)),
        "a tag that runs code": ("run: !!python/object/apply:os.system ['touch ran']\n", ("bad.yaml:1", "run")),
        "a misspelt section": ("trian:\n  epochs: 1\n", ("bad.yaml:1", "trian", "train")),
        "a misspelt key": ("train:\n  epoch: 1\n", ("bad.yaml:2", "epoch", "epochs")),
        "a section that is a number": ("train: 3\n", ("bad.yaml:1", "train")),
        "a list for a number": ("train:\n  epochs: [1, 2]\n", ("bad.yaml:2", "train.epochs")),
        "nothing closed": ("data: {train: [a, b\n", ("bad.yaml",)),
        "not UTF-8": (b"run:\n  name: caf\xe9\n", ("bad.yaml", "UTF-8")),
        "anchors without end": ("data: {columns: {a: &a [x, x], " + ", ".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(22)) + "}}\n", ("bad.yaml", "data.columns", "aliases")),
        "an alias of itself": ("data: {columns: &a {b: *a}}\n", ("bad.yaml", "data.columns")),
        "nested without end": ("[" * 3000, ("bad.yaml",)),
        "empty stages": ("stages: []\n", ("stages",)),
        "stages of one name": ("stages:\n  - {name: a}\n  - {name: a}\n", ("a", "name")),
    }  # fmt: skip
    for name, (text, holds) in texts.items():
        yield Case("recipes", name, ("train", "bad.yaml"), holds, {"bad.yaml": text})
    yield Case("recipes", "no file", ("train", "gone.yaml"), ("gone.yaml",))
    yield Case("recipes", "a folder", ("train", "folder.yaml"), ("folder.yaml", "folder"), {"folder.yaml/x": ""})


# ---- data


def data() -> Iterator[Case]:
    good = '{"prompt": "a", "completion": "b"}'
    deep = '{"prompt": "a", "completion": "b", "n": ' + "[" * 20_000 + "]" * 20_000 + "}\n"
    texts: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
        "empty file": ("x.jsonl", "", ("x.jsonl", "empty")),
        "blank lines only": ("x.jsonl", "\n\n", ("x.jsonl", "empty")),
        "broken JSON": ("x.jsonl", f'{good}\n{{"prompt": "a", \n', ("x.jsonl", "2")),
        "a number as row": ("x.jsonl", f"{good}\n3\n", ("x.jsonl", "2")),
        "a list as row": ("x.jsonl", f"{good}\n[1]\n", ("x.jsonl", "2")),
        "no known columns": ("x.jsonl", '{"foo": "a", "bar": "b"}\n', ("foo", "bar", "data.columns")),
        "nested without end": ("x.jsonl", good + "\n" + deep, ("x.jsonl", "2", "nest")),
        "a number of 10,000 digits": ("x.jsonl", '{"prompt": ' + "9" * 10_000 + ', "completion": "b"}\n', ("x.jsonl", "1")),
        "a lone surrogate": ("x.jsonl", good + '\n{"prompt": "a\\ud800", "completion": "b"}\n', ("row 2", "surrogate")),
        "a NUL character": ("x.jsonl", good + '\n{"prompt": "a\\u0000", "completion": "b"}\n', ("row 2", "NUL")),
        "cp1252": ("x.csv", "prompt,completion\nquote,\x93caf\xe9\x94\n".encode("latin-1"), ("x.csv", "iconv")),
        "GBK": ("x.jsonl", '{"prompt": "你好", "completion": "谢谢你"}\n'.encode("gbk"), ("x.jsonl", "UTF-8")),
        "binary": ("x.jsonl", bytes(range(256)) * 8, ("x.jsonl",)),
        "a PNG named .jsonl": ("x.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(64), ("x.jsonl",)),
        "a broken Parquet": ("x.parquet", b"PAR1" + bytes(40) + b"PAR1", ("x.parquet",)),
        "a Parquet of nothing": ("x.parquet", b"", ("x.parquet",)),
        "a broken gzip": ("x.jsonl.gz", b"\x1f\x8b\x08\x00" + bytes(20), ("x.jsonl.gz",)),
        "a cut gzip": ("x.jsonl.gz", gzip.compress(ROWS.encode() * 50)[:-20], ("x.jsonl.gz",)),
        "an unknown ending": ("x.xlsx", b"PK\x03\x04", ("x.xlsx", ".jsonl")),
        "CSV with a row too long": ("x.csv", "prompt,completion\na,b\nc,d,e\n", ("x.csv", "3")),
        "CSV with a header twice": ("x.csv", "prompt,completion,completion\na,b,c\n", ("completion",)),
        "CSV without header": ("x.csv", "What is it?,A fox.\nHow?,Fine.\n", ("What is it?",)),
        "CSV with a quote never closed": ("x.csv", 'prompt,completion\na,"b\nc,d\n', ("x.csv",)),
        "a role unknown": ("x.jsonl", '{"messages": [{"role": "robot", "content": "hi"}, {"role": "assistant", "content": "a"}]}\n', ("row 1", "robot", "assistant")),
        "a role missing": ("x.jsonl", '{"messages": [{"content": "hi"}]}\n', ("row 1", "role")),
        "messages is text": ("x.jsonl", '{"messages": "hello"}\n', ("row 1", "messages")),
        "messages is empty": ("x.jsonl", '{"messages": []}\n', ("row 1",)),
        "no assistant turn": ("x.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n', ("row 1", "no answer")),
        "an image": ("x.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"role": "assistant", "content": "a"}]}\n', ("row 1", "image")),
        "two system texts": ("x.jsonl", '{"system": "A", "messages": [{"role": "system", "content": "B"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]}\n', ("row 1", "system")),
        "an empty completion": ("x.jsonl", '{"prompt": "a", "completion": ""}\n', ("row 1", "blank")),
        "a completion that is null": ("x.jsonl", '{"prompt": "a", "completion": null}\n', ("completion",)),
        "a key twice in a row": ("x.jsonl", '{"prompt": "a", "completion": "b", "completion": "c"}\n', ("completion", "twice")),
        "a tool call without a name": ("x.jsonl", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]}\n', ("row 1", "name")),
        "too long": ("x.jsonl", json.dumps({"prompt": "word " * 400, "completion": "b"}) + "\n", ("row (1)", "data.max_length")),
        "weights that are words": ("x.jsonl", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": "much"}]}\n', ("row 1", "weight", "much")),
    }  # fmt: skip
    for name, (file, content, holds) in texts.items():
        yield Case("data", name, ("data", "check", file, "--model.name", "MODEL"), holds, {file: content})
    more = {
        "no such file": ("gone.jsonl", ("gone.jsonl",)),
        "a typo": ("ok.json", ("ok.json", "ok.jsonl")),
        "an empty folder": ("emptyfolder", ("emptyfolder",)),
        "a hub set offline": ("hub:nobody/nothing", ("nobody/nothing",)),
        "an unknown demo": ("demo:klingon", ("klingon", "pig-latin")),
        "a weight of a source that is no number": ("ok.jsonl*many", ("many",)),
    }
    for name, (source, holds) in more.items():
        yield Case("data", name, ("data", "check", source, "--model.name", "MODEL"), holds, {"emptyfolder/.keep": ""})
    yield Case(
        "data",
        "a column that is not there",
        ("data", "check", "ok.jsonl", "--model.name", "MODEL", "--data.columns", "prompt=question"),
        ("question", "prompt"),
    )
    yield Case(
        "data",
        "a form that does not fit",
        ("data", "check", "ok.jsonl", "--model.name", "MODEL", "--data.form", "messages"),
        ("data.form is messages", "prompt"),
    )
    yield Case(
        "data",
        "a response template that is not there",
        (
            "data",
            "check",
            "ok.jsonl",
            "--model.name",
            "MODEL",
            "--data.loss_on",
            "response_template",
            "--data.response_template",
            "###",
        ),
        ("###", "response_template"),
    )
    yield Case(
        "data", "a zip bomb", ("data", "check", "bomb.jsonl.gz", "--model.name", "MODEL"), ("bomb.jsonl.gz",), zip_bomb
    )
    yield Case(
        "data",
        "a Parquet bomb",
        ("data", "check", "bomb.parquet", "--model.name", "MODEL"),
        ("bomb.parquet",),
        parquet_bomb,
    )
    yield Case(
        "data",
        "a pipe",
        ("data", "check", "pipe.jsonl", "--model.name", "MODEL"),
        ("pipe.jsonl", "pipe"),
        lambda here: os.mkfifo(here / "pipe.jsonl"),
    )
    yield Case("data", "a link to itself", ("data", "check", "loop.jsonl", "--model.name", "MODEL"), ("loop.jsonl",), lambda here: (here / "loop.jsonl").symlink_to("loop.jsonl"))  # fmt: skip


def data_of_methods() -> Iterator[Case]:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = {
        "dpo on rows without pairs": ("dpo", {"prompt": "a", "completion": "b"}, ("chosen", "pairs")),
        "sft on pairs": ("sft", pair, ("chosen",)),
        "chosen equals rejected": ("dpo", {**pair, "rejected": "b"}, ("equal",)),
        "rejected is missing": ("dpo", {"prompt": "a", "chosen": "b"}, ("rejected",)),
        "rejected is null": ("dpo", {**pair, "rejected": None}, ("row 1", "rejected")),
        "kto without label": ("kto", {"prompt": "a", "completion": "b"}, ("label",)),
        "kto with a word as label": (
            "kto",
            {"prompt": "a", "completion": "b", "label": "nice"},
            ("row 1", "label", "nice"),
        ),
        "prompts without prompt": ("grpo", {"text": "a"}, ("prompt",)),
    }
    for name, (method, row, holds) in rows.items():
        words = (
            "train",
            "--method",
            method,
            "--model.name",
            "MODEL",
            "--data.train",
            "x.jsonl",
            "--data.eval_share",
            "0",
        )
        more = ("--rl.rewards", "exact") if method == "grpo" else ()
        yield Case("data of methods", name, (*words, *more), holds, {"x.jsonl": (json.dumps(row) + "\n") * 4})


def zip_bomb(here: Path) -> None:
    """Two gigabytes of one row, in two megabytes."""
    with gzip.open(here / "bomb.jsonl.gz", "wb", compresslevel=6) as file:
        for _ in range(2048):
            file.write(b" " * 2**20)


def parquet_bomb(here: Path) -> None:
    """A dictionary of one long text and two million rows of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"prompt": column, "completion": column}), here / "bomb.parquet", compression="zstd")


# ---- models, adapters, exports


def models() -> Iterator[Case]:
    from models.test_hostile_folders import CASES

    for name, (change, words) in CASES.items():
        yield Case(
            "models", name, (*TRAIN, "--model.name", "broken"), (f"re:{words}",), copied("MODEL", "broken", change)
        )
    more: dict[str, tuple[str, tuple[str, ...]]] = {
        "no such folder": ("./gone", ("./gone",)),
        "a typo of the built-in": ("smollm2-135m-instrut", ("smollm2-135m-instruct",)),
        "a data file": ("ok.jsonl", ("ok.jsonl", "folder")),
        "an adapter": ("ADAPTER", ("adapter", "base")),
        "not a name": ("a b//c", ("a b//c",)),
        "a GGUF that is not there": ("gone.gguf", ("gone.gguf",)),
        "a hub model offline": ("nobody/nothing-7b", ("nobody/nothing-7b",)),
    }
    for name, (model, holds) in more.items():
        yield Case("models", name, (*TRAIN, "--model.name", model), holds)
    gguf = {
        "a GGUF of nothing": b"",
        "a GGUF with a wrong mark": b"GGML" + bytes(60),
        "a GGUF with 2^62 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62),
        "a GGUF with a text of 2^60 bytes": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + b"x",
        "a GGUF that ends early": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 4) + b"name",
    }
    for name, content in gguf.items():
        yield Case("models", name, (*TRAIN, "--model.name", "x.gguf"), ("x.gguf",), {"x.gguf": content})
    yield Case(
        "models",
        "pickled weights",
        (*TRAIN, "--model.name", "broken"),
        ("model.allow_pickled",),
        copied("MODEL", "broken", pickled),
    )
    yield Case(
        "models",
        "NaN in the weights",
        (*TRAIN, "--model.name", "broken"),
        ("NaN",),
        copied("MODEL", "broken", not_a_number),
    )


def copied(source: str, name: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        shutil.copytree(here / source, here / name)
        change(here / name)

    return make


def edited(file: str, **changed: object) -> Callable[[Path], None]:
    """JSON of a folder with other values; None takes a key away."""

    def change(folder: Path) -> None:
        path = folder / file
        values = {**json.loads(path.read_text()), **changed}
        path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return change


def no_specials(folder: Path) -> None:
    for file in ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"):
        path = folder / file
        if path.exists():
            held = json.loads(path.read_text())
            path.write_text(json.dumps({name: value for name, value in held.items() if "_token" not in name}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")


def not_a_number(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].clone().fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")

    return make


def adapters() -> Iterator[Case]:
    def without(file: str) -> Callable[[Path], None]:
        return lambda folder: (folder / file).unlink()

    changes: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
        "no weights": (without("adapter_model.safetensors"), ("broken", "adapter_model.safetensors")),
        "weights cut short": (lambda f: os.truncate(f / "adapter_model.safetensors", 500), ("broken",)),
        "weights of nothing": (lambda f: os.truncate(f / "adapter_model.safetensors", 0), ("broken",)),
        "a header of 2^60 bytes": (lambda f: (f / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"), ("broken",)),
        "config is no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), ("adapter_config.json",)),
        "config is a list": (lambda f: (f / "adapter_config.json").write_text("[]"), ("adapter_config.json",)),
        "config nested": (lambda f: (f / "adapter_config.json").write_text('{"a":' * 20_000 + "1" + "}" * 20_000), ("adapter_config.json",)),
        "another kind": (edited("adapter_config.json", peft_type="IA3"), ("broken", "IA3")),
        "no kind": (edited("adapter_config.json", peft_type=None), ("broken",)),
        "a kind that does not exist": (edited("adapter_config.json", peft_type="MAGIC"), ("broken", "MAGIC")),
        "rank is a word": (edited("adapter_config.json", r="big"), ("broken", "r")),
        "rank is 10^9": (edited("adapter_config.json", r=10**9), ("broken", "r")),
        "rank is 0": (edited("adapter_config.json", r=0), ("broken", "r")),
        "targets are not there": (edited("adapter_config.json", target_modules=["no_proj"]), ("no_proj",)),
        "targets are a regular expression that explodes": (edited("adapter_config.json", target_modules="(.+)+x"), ("target_modules", "list")),
        "facts are no JSON": (lambda f: (f / "fitune.json").write_text("{"), ("fitune.json",)),
        "facts are a list": (lambda f: (f / "fitune.json").write_text("[1]"), ("fitune.json",)),
        "facts without a base": (edited("fitune.json", base=None), ("fitune.json", "base")),
        "a base that is gone": (edited("fitune.json", base={"kind": "folder", "name": "./gone", "revision": None}), ("./gone", "--base")),
        "a base of another width": (edited("fitune.json", hidden_size=99), ("99",)),
        "another model under the base's name": (edited("fitune.json", weights="0" * 64), ("broken",)),
        "values that are NaN": (weights_of(lambda t: {n: v.fill_(float("nan")) for n, v in t.items()}), ("NaN",)),
        "a shape that does not fit": (weights_of(lambda t: {n: v[:, :3].contiguous() for n, v in t.items()}), ("broken",)),
        "a tensor too many": (weights_of(lambda t: {**t, "base_model.extra": next(iter(t.values())).clone()}), ("extra",)),
        "a tensor too few": (weights_of(lambda t: dict(list(t.items())[1:])), ("broken",)),
    }  # fmt: skip
    for name, (change, holds) in changes.items():
        yield Case(
            "adapters",
            name,
            ("generate", "broken", "hi", "--max-new-tokens", "2"),
            holds,
            copied("ADAPTER", "broken", change),
        )
    yield Case(
        "adapters",
        "combine one that is not there",
        ("adapters", "combine", "run=0.5", "gone=0.5", "--as", "both"),
        ("gone", "run"),
    )
    yield Case(
        "adapters",
        "combine with a word as weight",
        ("adapters", "combine", "run=much", "--as", "both"),
        ("much",),
        status=-1,
    )
    yield Case("adapters", "delete what is not there", ("adapters", "delete", "gone"), ("gone",))
    yield Case("adapters", "rename onto another", ("adapters", "rename", "run", "run"), ("run",))


def exports() -> Iterator[Case]:
    yield Case("exports", "a run that is not there", ("export", "runs/rum", "--to", "merged"), ("runs/rum", "run"))
    yield Case("exports", "an unknown form", ("export", "run", "--to", "onnx"), ("onnx", "gguf"), status=2)
    yield Case(
        "exports", "an unknown type", ("export", "run", "--to", "gguf", "--type", "q3"), ("q3", "q8_0"), status=2
    )
    yield Case(
        "exports", "a folder that is taken", ("export", "run", "--to", "merged", "--out", "MODEL"), ("MODEL", "--out")
    )
    yield Case(
        "exports", "a file as folder", ("export", "run", "--to", "gguf", "--out", "x.gguf"), ("x.gguf", "folder")
    )
    yield Case(
        "exports", "a folder in a file", ("export", "run", "--to", "merged", "--out", "ok.jsonl/out"), ("ok.jsonl",)
    )
    yield Case(
        "exports",
        "prompts that are not there",
        ("export", "run", "--to", "merged", "--out", "o", "--prompts", "gone.txt"),
        ("gone.txt",),
    )
    yield Case(
        "exports",
        "prompts that are empty",
        ("export", "run", "--to", "merged", "--out", "o", "--prompts", "e.txt"),
        ("e.txt",),
        {"e.txt": ""},
    )
    yield Case(
        "exports",
        "a base for a whole model",
        ("export", "MODEL", "--to", "merged", "--out", "o", "--base", "MODEL"),
        ("--base",),
    )
    yield Case(
        "exports",
        "a base that is not there",
        ("export", "run", "--to", "merged", "--out", "o", "--base", "./gone"),
        ("./gone",),
    )
    yield Case(
        "exports",
        "a type for a form without",
        ("export", "run", "--to", "merged", "--type", "q8_0", "--out", "o"),
        ("--type", "merged"),
        status=-1,
    )
    yield Case(
        "exports",
        "a run that has saved nothing",
        ("export", "begun", "--to", "merged"),
        ("begun", "--resume"),
        begun_run,
    )
    yield Case(
        "exports",
        "a folder that is read-only",
        ("export", "run", "--to", "merged", "--out", "/proc/fitune/out"),
        ("/proc",),
    )


def begun_run(here: Path) -> None:
    run = here / "runs" / "begun"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text('{"status": "interrupted", "data": {"exclude": []}}')
    (run / "settings.yaml").write_text("{}")


# ---- rewards, templates, commands


def rewards() -> Iterator[Case]:
    functions: dict[str, tuple[str, str, tuple[str, ...]]] = {
        "a syntax error": ("def f(answers:\n", "r.py:f", ("r.py", "line 1")),
        "an import that fails": (
            "import no_such_module\ndef f(answers): return [0]\n",
            "r.py:f",
            ("r.py", "no_such_module"),
        ),
        "no such function": ("def g(answers): return [0]\n", "r.py:f", ("r.py", "f", "g")),
        "not a function": ("f = 3\n", "r.py:f", ("r.py", "f")),
        "it raises": ("def f(answers): return [1 / 0 for a in answers]\n", "r.py:f", ("f", "ZeroDivisionError")),
        "too few numbers": ("def f(answers): return [1.0]\n", "r.py:f", ("f", "1 numbers")),
        "NaN": ("def f(answers): return [float('nan')] * len(answers)\n", "r.py:f", ("f", "nan")),
        "words": ("def f(answers): return ['good'] * len(answers)\n", "r.py:f", ("f", "good")),
        "nothing": ("def f(answers): pass\n", "r.py:f", ("f", "None")),
        "a parameter that is no column": (
            "def f(answers, colour): return [0] * len(answers)\n",
            "r.py:f",
            ("f", "colour"),
        ),
        "it ends the process": ("def f(answers): raise SystemExit(7)\n", "r.py:f", ("f", "SystemExit")),
        "it never ends": ("def f(answers):\n    while True: pass\n", "r.py:f", ("f", "rl.reward_seconds")),
    }
    for name, (text, reward, holds) in functions.items():
        yield Case("rewards", name, (*RL, "--rl.rewards", reward, "--rl.reward_seconds", "0.3"), holds, {"r.py": text})
    named = {
        "no file": ("gone.py:f", ("gone.py",)),
        "an unknown name": ("pig", ("pig", "pig_latin")),
        "a bad expression": ("regex:(", ("regex",)),
        "a length of words": ("length:many", ("length", "many")),
        "a weight that is no number": ("much*exact", ("much",)),
        "a run that is not there": ("run:gone", ("gone",)),
        "a run that is no reward model": ("run:run", ("run", "reward")),
        "a module that is not there": ("no.such.function", ("no.such",)),
    }
    for name, (reward, holds) in named.items():
        yield Case("rewards", name, (*RL, "--rl.rewards", reward), holds)


def templates() -> Iterator[Case]:
    start = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    texts = {
        "a syntax error": ("{% for m in messages %}", ("t.jinja", "for")),
        "a filter that is not there": ("{{ messages | no_such }}", ("t.jinja", "no_such")),
        "a method that is forbidden": ("{{ messages.__class__.__mro__ }}", ("t.jinja",)),
        "a loop without end": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", ("t.jinja",)),
        "a text without end": ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", ("t.jinja",)),
        "it refuses": ("{{ raise_exception('only in June') }}", ("only in June",)),
        "it writes no answer": ("{% for m in messages %}{{ m.role }}{% endfor %}", ("t.jinja",)),
        "it writes nothing": ("", ("t.jinja",)),
        "no end of the answer": ("{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}", ("end",)),
        "a variable that is not there": (start + "{{ nothing.at.all }}", ("t.jinja",)),
        "not UTF-8": (b"{{ '\xe9' }}", ("t.jinja", "UTF-8")),
    }  # fmt: skip
    for name, (text, holds) in texts.items():
        words = (*TRAIN, "--model.name", "MODEL", "--model.chat_template", "t.jinja")
        yield Case("templates", name, words, holds, {"t.jinja": text})
    yield Case(
        "templates",
        "no file",
        (*TRAIN, "--model.name", "MODEL", "--model.chat_template", "gone.jinja"),
        ("gone.jinja",),
    )


def commands() -> Iterator[Case]:
    told: list[tuple[str, tuple[str, ...], tuple[str, ...], int]] = [
        ("a misspelt command", ("trian",), ("trian", "train"), 2),
        ("an option that is not there", ("chat", "run", "--temprature", "1"), ("--temprature", "--temperature"), 2),
        ("a temperature below 0", ("generate", "run", "hi", "--temperature", "-1"), ("temperature", "-1"), 2),
        ("chat with a typo", ("chat", "runs/rum"), ("runs/rum", "run"), 1),
        ("generate without a prompt file", ("generate", "run", "--file", "gone.txt"), ("gone.txt",), 1),
        (
            "generate more than fits",
            ("generate", "run", "hi", "--max-new-tokens", "100000"),
            ("100,000", "--max-new-tokens"),
            1,
        ),
        ("evaluate without data", ("evaluate", "run"), ("--data",), 2),
        ("evaluate on what is not there", ("evaluate", "run", "--data", "gone.jsonl"), ("gone.jsonl",), 1),
        ("score with no reward model", ("score", "run", "--data", "ok.jsonl"), ("run", "reward"), 1),
        ("resume what is not there", ("train", "--resume", "gone"), ("gone", "run"), 1),
        ("resume what is finished", ("train", "--resume", "run"), ("run", "finished"), 1),
        ("resume with other settings", ("train", "--resume", "begun", "--lora.rank", "3"), ("lora.rank",), 1),
        ("a run of that name", (*TRAIN_RUN, "--run.name", "run"), ("runs/run", "run.name"), 1),
        ("show a run that is not there", ("runs", "show", "rum"), ("rum", "run"), 1),
        ("compare one run", ("runs", "compare", "run"), ("two runs",), 2),
        ("compare with a run that is not there", ("runs", "compare", "run", "rum"), ("rum",), 1),
        ("show a damaged run", ("runs", "show", "damaged"), ("manifest.json", "damaged"), 1),
        (
            "plan for a card that is not there",
            ("plan", "MODEL", "--gpu", "RTX 9999", "--seq-len", "64"),
            ("RTX 9999",),
            1,
        ),
        (
            "plan for a model that is not there",
            ("plan", "./gone", "--seq-len", "64", "--budget", "8GiB"),
            ("./gone",),
            1,
        ),
        ("plan with a budget of words", ("plan", "MODEL", "--seq-len", "64", "--budget", "much"), ("much", "GiB"), 1),
        ("split by more than all", ("data", "split", "ok.jsonl", "--test", "2"), ("2",), 1),
        ("split what is not there", ("data", "split", "gone.jsonl"), ("gone.jsonl",), 1),
        ("make over a file", ("data", "make", "pig-latin", "--out", "ok.jsonl"), ("ok.jsonl", "exists"), 1),
        (
            "make from what is not there",
            ("data", "make", "pig-latin", "--from", "gone.txt", "--out", "n.jsonl"),
            ("gone.txt",),
            1,
        ),
        ("a device that is not there", ("generate", "run", "hi", "--device", "cuda"), ("cuda",), 1),
        ("demo under another's name", ("demo", "--name", "run"), ("run", "--name"), 1),
    ]
    for name, words, holds, status in told:
        yield Case("commands", name, words, holds, damaged_runs, status)


def damaged_runs(here: Path) -> None:
    begun_run(here)
    run = here / "runs" / "damaged"
    run.mkdir()
    (run / "manifest.json").write_text('{"status": ')
    (run / "settings.yaml").write_text("{}")


TRAIN_RUN = (
    "train",
    "--fit",
    "off",
    "--model.name",
    "MODEL",
    "--data.train",
    "ok.jsonl",
    "--train.max_steps",
    "1",
    "--eval.samples",
    "0",
)
TRAIN = (
    "train",
    "--fit",
    "off",
    "--data.train",
    "ok.jsonl",
    "--data.eval_share",
    "0",
    "--train.max_steps",
    "1",
    "--eval.samples",
    "0",
)
RL = (
    "train", "--method", "grpo", "--fit", "off", "--model.name", "MODEL", "--data.train", "ok.jsonl", "--data.eval_share", "0",
    "--train.max_steps", "1", "--train.batch_size", "2", "--rl.max_new_tokens", "4", "--rl.num_generations", "2",
)  # fmt: skip


# ---- one case


def prepare(root: Path) -> None:
    """A tiny model and a finished run over it."""
    from conftest import make_model_folder

    make_model_folder(root / "MODEL", "llama")
    (root / "ok.jsonl").write_text(ROWS * 4)
    answer = call(root, (*TRAIN_RUN, "--run.name", "run"))
    if answer.status != 0:
        raise SystemExit(f"the run that all cases use failed: {answer.said}")
    shutil.copytree(root / "runs" / "run" / "adapter", root / "ADAPTER")


def call(here: Path, words: tuple[str, ...]) -> Answer:
    """One command in this process, in the folder ``here``."""
    from fitune.cli import main

    out = io.StringIO()
    before, argv, folder = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.argv, Path.cwd()
    began, status = time.process_time(), 0
    os.chdir(here)
    sys.argv = ["fitune", *words]
    modules = set(sys.modules)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        status = "".join(traceback.format_exception_only(error))
        out.write("".join(traceback.format_exception(error)))
    finally:
        os.chdir(folder)
        sys.argv = argv
        del modules
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Answer(status, out.getvalue(), time.process_time() - began, grown * 1024)


def answered(case: Case, root: Path) -> Answer:
    """The case in a copy of the prepared folder."""
    here = root / "here"
    shutil.copytree(root / "fresh", here, symlinks=True)
    try:
        if callable(case.files):
            case.files(here)
        else:
            for name, content in dict(case.files).items():
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return call(here, case.words)
    finally:
        shutil.rmtree(here)


def faults(case: Case, answer: Answer) -> list[str]:
    """What is wrong with an answer."""
    found, flat = [], " ".join(answer.said.split())
    if isinstance(answer.status, str) or "Traceback" in answer.said:
        found.append(f"traceback: {answer.status}")
    elif (case.status == -1 and answer.status == 0) or (case.status > -1 and answer.status != case.status):
        found.append(f"exit {answer.status}")
    for words in case.holds:
        there = re.search(words[3:], flat) if words.startswith("re:") else words.lower() in flat.lower()
        if not there:
            found.append(f"does not say {words!r}")
    if answer.seconds > LIMIT_SECONDS:
        found.append(f"{answer.seconds:.1f} s")
    if answer.grown_bytes > LIMIT_BYTES:
        found.append(f"{answer.grown_bytes / 2**20:.0f} MiB")
    return found


def last_words(said: str, root: Path) -> str:
    """The error alone, in one line, without the folder of this run."""
    text = said[said.rfind("error: ") if "error: " in said else 0 :]
    text = text if text.strip() else said[said.rfind("Error: ") :]
    flat = " ".join(text.replace(str(root / "here"), ".").split())
    return flat if len(flat) <= MOST_CHARACTERS else flat[:MOST_CHARACTERS] + " …"


def main() -> None:
    wanted = sys.argv[1:]
    lines: dict[str, list[str]] = {}
    wrong, slowest, count = [], 0.0, 0

    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        root = Path(folder)
        (root / "fresh").mkdir()
        prepare(root / "fresh")
        os.environ["FITUNE_CACHE"] = str(root / "cache")
        for case in cases():
            if wanted and case.group not in wanted:
                continue
            answer = answered(case, root)
            found, count, slowest = faults(case, answer), count + 1, max(slowest, answer.seconds)
            said = last_words(answer.said, root)
            if found:
                wrong.append(f"{case.group}, {case.name}: {'; '.join(found)}")
                print(f"WRONG {wrong[-1]}\n      {said}", flush=True)
            elif wanted:
                print(f"{case.name}: {said}")
            cell = said.replace("|", "\\|").replace("<", "&lt;")
            lines.setdefault(case.group, []).append(f"| {case.name.replace('|', '')} | {cell} |")
    print(f"{count} cases, {len(wrong)} wrong; the slowest took {slowest:.2f} s of CPU time")
    if not wanted:
        PAGE.write_text(page(lines, count, wrong, slowest))
    sys.exit(1 if wrong else 0)


def page(lines: dict[str, list[str]], count: int, wrong: list[str], slowest: float) -> str:
    tables = "\n".join(
        f"## {group[0].upper()}{group[1:]}\n\n| input | what fitune says |\n|---|---|\n" + "\n".join(rows) + "\n"
        for group, rows in lines.items()
    )
    verdict = "all as they should be" if not wrong else f"{len(wrong)} not as they should be: " + "; ".join(wrong)
    return f"""# What fitune says to bad inputs

Written by `python benchmarks/bad_inputs.py` on {date.today()}: {count} inputs, {verdict}. No traceback; the slowest answer
took {slowest:.1f} s of CPU time (the limit is {LIMIT_SECONDS:.0f} s and {LIMIT_BYTES // 2**30} GiB of memory each). Each case states words that its answer must
hold: the place, the value, what to do. Long answers are cut here. The files of `tests/data/cases` have tests of their own.

{tables}"""


if __name__ == "__main__":
    main()
