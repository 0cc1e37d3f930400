"""Files that appear whole or not at all, and what to say when a disk takes no more."""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fitune.errors import StorageError

# errno → what happened, what to do.
CAUSES = {
    errno.ENOSPC: ("no space is left on its disk", "free some space, or move the folder to another disk"),
    errno.EDQUOT: ("your quota on its disk is used up", "free some space, or move the folder to another disk"),
    errno.EFBIG: ("a file would grow past the limit for its size", "raise the limit (`ulimit -f`)"),
    errno.EROFS: ("its disk is mounted read-only", "mount it for writing, or move the folder to another disk"),
    errno.EACCES: ("writing there is not permitted", "give yourself the right to write there (`chmod u+w`)"),
    errno.EPERM: ("writing there is not permitted", "give yourself the right to write there (`chmod u+w`)"),
    errno.EIO: ("its disk reports an input/output error", "check the disk, or move the folder to another one"),
    errno.ESTALE: ("its network file system has lost it", "mount it again"),
    errno.ENOENT: ("a folder is gone that was there before", "put it back if it was moved"),
}
# What PyTorch says of a write that failed, whatever the reason.
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error")


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one move: a reader sees the old text or the new one, and a full disk leaves the old one."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def scratch_beside(path: Path) -> Generator[Path, None, None]:
    """A folder to prepare ``path`` in, on the same disk; what a killed process left of its own goes too."""
    start = f".{path.name}-{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        pid = left.name.removeprefix(start).partition("-")[0]
        if pid.isdecimal() and not process_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{start}{os.getpid()}-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def process_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one of another user counts, one that has ended and waits for its parent to
    look (a zombie) does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


def storage_error(error: BaseException, folder: Path, safe: str, go_on: str) -> StorageError | None:
    """What to say when writing below ``folder`` failed; None when the error is of another kind.

    Args:
        safe: what is not lost.
        go_on: how to continue, once the cause is removed.
    """
    number = _errno(error, folder)
    if number not in CAUSES:
        return None
    happened, remedy = CAUSES[number]
    return StorageError(
        f"{folder} could not be written: {happened} ({errno.errorcode[number]}). {safe}; {remedy}, then {go_on}"
    )


def _errno(error: BaseException, folder: Path) -> int | None:
    """The system's number of a failed write; None for an error that is not of this folder."""
    if isinstance(error, OSError):
        name = error.filename
        if isinstance(name, str | Path) and not Path(name).absolute().is_relative_to(folder.absolute()):
            return None
        missing = error.errno == errno.ENOENT and (name is None or Path(str(name)).parent.is_dir())
        return None if missing else error.errno
    if type(error).__name__ == "SafetensorError" and (told := re.search(r"os error (\d+)", str(error))):
        return int(told[1])
    if isinstance(error, RuntimeError) and TORCH_WRITER.search(str(error)):
        return _probe(folder)
    return None


def _probe(folder: Path) -> int:
    """Why writing fails here, found by writing; EIO when a megabyte can be written after all."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(os.urandom(2**20))
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        probe.unlink(missing_ok=True)
    return errno.EIO
