"""A result to the Hugging Face Hub: an adapter, a model or an exported folder, with its card."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from fitune.errors import ModelError

WEIGHTS = ("*.safetensors", "*.gguf")
CARD = "README.md"
# Never part of a result.
LEFT_OUT = (".*", "**/.*", "*.tmp", "optimizer.pt", "*.pt")


@dataclass(frozen=True)
class Parcel:
    """What would be pushed: a folder's files with their sizes in bytes."""

    folder: Path
    files: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)


def pack(target: str, runs_folder: str = "runs") -> Parcel:
    """The files of a run's result, an adapter's folder, or an exported folder.

    Raises:
        ModelError: there is no such folder, or no weights in it.
    """
    folder = _result_of(target, runs_folder)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(path.relative_to(folder).match(pattern) for pattern in LEFT_OUT)
    ]
    if not any(path.match(pattern) for path in files for pattern in WEIGHTS):
        raise ModelError(f"{folder} holds no weights (.safetensors or .gguf); name a run or an exported folder")
    return Parcel(folder, tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files))


def push(parcel: Parcel, repo: str, private: bool = True, licence: str | None = None, api: HfApi | None = None) -> str:
    """Upload; what the hub has already is not sent again, so that a push that broke off goes on.

    Args:
        repo: ORG/NAME on the hub; made if it is not there.
        private: for a new repository only.
        licence: put into the card, such as apache-2.0; None leaves the card's.

    Returns:
        The address of the commit.

    Raises:
        ModelError: no login, no permission, no connection, or a name that the hub does not take.
    """
    api = api or HfApi()
    if licence:
        _write_licence(parcel.folder / CARD, licence)
    with _told(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=parcel.folder,
            allow_patterns=[name for name, _ in parcel.files],
            commit_message="Pushed by fitune",
        )
    return str(done.commit_url)


def _result_of(target: str, runs_folder: str) -> Path:
    for path in (Path(target).expanduser(), Path(runs_folder) / target):
        for folder in (path / "adapter", path / "model", path):
            if any(match for pattern in WEIGHTS for match in folder.glob(pattern)):
                return folder
    for path in (Path(target).expanduser(), Path(runs_folder) / target):
        if path.is_dir():
            raise ModelError(f"{path} holds no weights (.safetensors or .gguf); name a run or an exported folder")
    raise ModelError(f'there is no run or folder "{target}"; `fitune runs list` lists the runs')


def _write_licence(card: Path, licence: str) -> None:
    if not card.exists():
        raise ModelError(f"--license needs a card to stand in, and {card} is not there")
    loaded = ModelCard.load(card)
    loaded.data["license"] = licence
    loaded.save(card)


@contextmanager
def _told(repo: str) -> Generator[None]:
    """The hub's faults in a sentence, without tokens."""
    try:
        yield
    except (HFValidationError, ValueError) as error:
        raise ModelError(
            f"--to is {repo}, which the hub takes for no name: {_first_line(error)}; use ORG/NAME"
        ) from error
    except LocalTokenNotFoundError as error:
        raise ModelError("no login to the hub was found; log in with `hf auth login`, or set HF_TOKEN") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise ModelError(
            f"{repo} cannot be reached on the hub: it does not exist or your login does not see it"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelError(
                f"the hub refused to write to {repo} ({status}); log in with `hf auth login` and a token that may write"
            ) from error
        raise ModelError(
            f"the hub answered {status} for {repo}; what has arrived is kept there: push again to go on"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ModelError("HF_HUB_OFFLINE is set, and pushing needs the hub; unset it") from error
    except Exception as error:
        if not _is_connection(error):
            raise
        raise ModelError(
            f"the connection to the hub broke ({type(error).__name__}); what has arrived is kept there: push again to go on"
        ) from error


def _is_connection(error: Exception) -> bool:
    """Whether it is the network's fault: the hub client's HTTP library has no base class with Python's own errors."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return any(
        isinstance(one, OSError | HfHubHTTPError) or type(one).__module__.partition(".")[0].startswith("httpx")
        for one in chain
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
