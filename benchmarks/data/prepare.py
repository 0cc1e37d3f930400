"""Time and peak memory of preparing 5,000 and 200,000 conversations: ours, ours with kept tokens, and TRL's SFTTrainer.

    python benchmarks/data/prepare.py [ROWS ...]

Every measurement is a process of its own, one after the other, alternating. Ours is what `fitune data check` does; TRL's is
`SFTTrainer(...)` with `assistant_only_loss` off, which renders and tokenizes in `datasets.map`, with one process and with two.
The rows are random words of the Harvard sentences. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

REPEATS = 2


def write_rows(path: Path, count: int) -> None:
    """Conversations of one question and answer, some 95 tokens with SmolLM2's template."""
    draw = random.Random(1)
    words = files("fitune.data").joinpath("harvard_sentences.txt").read_text(encoding="utf-8").lower().split()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            said = [" ".join(draw.choices(words, k=draw.randint(low, 50))) for low in (8, 10)]
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
            file.write(json.dumps({"messages": turns}) + "\n")


def ours(path: str) -> None:
    """As `fitune data check`."""
    from fitune.api.data_source import renderer_of, settings_of_data
    from fitune.training.setup import read_data

    settings = settings_of_data(path, {})
    renderer, config = renderer_of(settings)
    read_data(settings, config, renderer, exclude=())


def trl(path: str, processes: int) -> None:
    """The preparation that SFTTrainer does when it is made."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from fitune.models.source import resolve

    folder = resolve("smollm2-135m-instruct").path
    data = load_dataset("json", data_files=path, split="train")
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        dataset_num_proc=processes,
        max_length=8192,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    SFTTrainer(model=model, args=args, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder))


def measured(how: str, path: str, scratch: str) -> dict[str, object]:
    """One preparation in a process of its own: seconds and peak memory, its children's processes counted in."""
    environment = {**os.environ, "FITUNE_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": f"{scratch}/datasets"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = f"import sys; sys.argv = ['prepare', {how!r}, {path!r}]; import runpy; runpy.run_path({__file__!r}, run_name='one')"
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK], env=environment, capture_output=True, text=True, check=True
    )
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(busy, 1), "peak_mb": int(done.stdout.split()[-1])}


PEAK = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
WAYS = ("ours", "ours, tokens kept", "TRL", "TRL, 2 processes")


def main(counts: list[int]) -> None:
    """All ways, one after the other, REPEATS times."""
    from fitune.cache_folder import cache_folder

    models = cache_folder() / "models"
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, count)
            for repeat in range(REPEATS):
                scratch = Path(folder) / str(repeat)
                (scratch / "cache").mkdir(parents=True)
                (scratch / "cache" / "models").symlink_to(models)
                for way in WAYS:
                    found = {"rows": count, "way": way, **measured(way, str(path), str(scratch))}
                    print(json.dumps(found), flush=True)


if __name__ == "one":
    way, file = sys.argv[1:]
    if way.startswith("ours"):
        ours(file)
    else:
        trl(file, 2 if "2" in way else 1)
if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]] or [5_000, 200_000])
