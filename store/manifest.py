"""What the files of a checkpoint held when they were saved: SHA256SUMS, which `sha256sum -c` reads, too."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER, SUMS = "checkpoints", "SHA256SUMS"
METADATA, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"  # Orbax writes them last of all, after the sums
WITHOUT_SUM = (SUMS, METADATA, COMMITTED)
READERS = 4  # files read at once
PATTERNS = "*?[]"  # what Orbax takes for a pattern in the path of its own checkpoints


def check_path(folder: Path) -> None:
    """Raises ValueError for a folder whose checkpoints could be written and not read again."""
    if found := sorted({letter for letter in str(folder.absolute()) if letter in PATTERNS}):
        raise ValueError(
            f"{folder.absolute()} has {' '.join(found)} in its path, which is read as a pattern of names where"
            " checkpoints are restored; choose a folder without, or a symbolic link to it with another name"
        )


def checkpoint_steps(run: Path) -> list[int]:
    """The complete checkpoints of a run directory, in order."""
    return sorted(int(path.name) for path in (run / FOLDER).glob("*") if path.name.isascii() and path.name.isdigit())


def newest_whole(run: Path, under: str = "") -> tuple[int | None, dict[int, str]]:
    """The newest checkpoint of a run whose files (those below `under`) are as they were saved, or None.

    Beside it what is wrong with each newer one, in words.
    """
    wrong: dict[int, str] = {}
    for step in reversed(checkpoint_steps(run)):
        found = damage(run, step, under)
        if found is None:
            return step, wrong
        wrong[step] = found
    return None, wrong


def damage(run: Path, step: int, under: str = "") -> str | None:
    """What of a checkpoint (of its files below `under`) is not as it was saved, in words; None when all is.

    One without sums is whole when no earlier one has any: it is from before they were written.
    """
    folder = run / FOLDER / str(step)
    sums = folder / SUMS
    if not sums.is_file():
        expected = any((run / FOLDER / str(s) / SUMS).is_file() for s in checkpoint_steps(run) if s < step)
        return f"{sums} is missing" if expected else None
    try:
        saved = _parse(sums.read_text())
        json.loads((folder / METADATA).read_text())
        found = _digests(folder, under)
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {error}"
    saved = {name: digest for name, digest in saved.items() if name.startswith(f"{under}/" if under else "")}
    for name in sorted({*saved, *found}):
        if name not in found:
            return f"{folder / name} is missing"
        if name not in saved:
            return f"{folder / name} is not listed in {SUMS}"
        if found[name] != saved[name]:
            size = (folder / name).stat().st_size
            return f"SHA-256 of {folder / name} ({size} bytes) is {found[name][:16]}, was {saved[name][:16]} when saved"
    return None


def write_sums(folder: Path) -> None:
    """Lists the SHA-256 of every file below `folder` in it, and forces the list to the disk."""
    text = "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items())
    with open(folder / SUMS, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _parse(text: str) -> dict[str, str]:
    lines = [line.partition("  ") for line in text.splitlines()]
    if not lines or not text.endswith("\n") or any(len(digest) != 64 or not name for digest, _, name in lines):
        raise ValueError(f"{SUMS} is cut off or no list of sums")
    return {name: digest for digest, _, name in lines}


def _digests(folder: Path, under: str = "") -> dict[str, str]:
    """Name below `folder` -> SHA-256, of every file below `folder`/`under` that has one; hidden files are not ours."""
    files = [path for path in sorted((folder / under).rglob("*")) if path.is_file() and not path.name.startswith(".")]
    names = [path.relative_to(folder).as_posix() for path in files]
    wanted = [(name, path) for name, path in zip(names, files, strict=True) if name not in WITHOUT_SUM]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip([name for name, _ in wanted], pool.map(_digest, [path for _, path in wanted]), strict=True))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
