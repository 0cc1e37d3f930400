"""The text on which an importance matrix is measured: the run's own training rows as they were rendered, or a file."""

from __future__ import annotations

from fitune.data.examples import Example
from fitune.data.read.sources import DataOptions, example_key, set_aside
from fitune.data.render.renderer import Renderer
from fitune.data.sft import load_examples
from fitune.errors import DataError
from fitune.runs.compare import read_settings
from fitune.runs.run_folder import RunFolder

OWN = "run"
# llama-imatrix reads chunks of 512 tokens; some 150,000 tokens are more than is usually taken.
MOST_CHARACTERS, FEWEST_CHARACTERS = 500_000, 4_000


def read_calibration(named: str, run: RunFolder | None, renderer: Renderer) -> str:
    """Rendered rows, spread evenly over the data, one after the other.

    Args:
        named: `run`, or a data file.

    Raises:
        DataError: no run to take rows from, rows that are no conversations or texts, or too few.
    """
    texts = [text for example in _examples(named, run, renderer) if (text := _text(example, renderer))]
    step = max(sum(map(len, texts)) // MOST_CHARACTERS, 1)
    found = "".join(texts[::step])[:MOST_CHARACTERS]
    if len(found) < FEWEST_CHARACTERS:
        raise DataError(
            f"{named} gives {len(found):,} characters for the importance matrix, and it takes {FEWEST_CHARACTERS:,} or more; "
            "name a larger file with --imatrix"
        )
    return found


def _examples(named: str, run: RunFolder | None, renderer: Renderer) -> list[Example]:
    if named != OWN:
        return load_examples(named, renderer, DataOptions())[2]
    if run is None:
        raise DataError(
            "--imatrix run takes the rows of a run, and there is none here; name a data file with --imatrix"
        )
    settings = read_settings(run)
    data, seed = settings["data"], settings["train"]["seed"]
    options = DataOptions(
        form=data["form"], columns=data["columns"], system=data["system"], hub_split=data["hub_split"], seed=seed
    )
    examples = load_examples(data["train"], renderer, options)[2]
    return examples if data["eval"] else set_aside(examples, data["eval_share"], seed, example_key)[0]


def _text(example: Example, renderer: Renderer) -> str:
    if example.messages is None:
        return example.text or ""
    return renderer.text_of(list(example.messages), tools=example.tools)
