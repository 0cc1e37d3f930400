"""A data set on the hub, through the `datasets` library."""

from __future__ import annotations

from fitune.data.read.formats.arrow_tables import rows_of_dataset
from fitune.data.read.formats.found import Found
from fitune.errors import DataError


def read_hub(name: str, split: str) -> tuple[Found, str]:
    """`hub:NAME` or `hub:NAME:CONFIG`; the rows, and the library's fingerprint of them.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_dataset

    _, repository, *config = name.split(":")
    try:
        dataset = load_dataset(repository, config[0] if config else None, split=split)
        found = rows_of_dataset(dataset)
    except Exception as error:  # the library raises many kinds; each means the same to the user
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f'the hub dataset "{repository}" (split {split}) cannot be loaded: {first}. '
            "Check the name, the split and the network, or give a file"
        ) from error
    return found, str(getattr(dataset, "_fingerprint", ""))
