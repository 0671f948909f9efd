"""What the files of a checkpoint held when they were saved: SHA256SUMS, which `sha256sum -c` reads, too.

The store of objects knows the CRC32C of each: CRC32CSUMS lists them, and nothing is read again to compare.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from store.objects import absolute, checksums, is_object, write

FOLDER = "checkpoints"
SUMS, SUMS_OF_OBJECTS = "SHA256SUMS", "CRC32CSUMS"
DIGITS = {SUMS: 64, SUMS_OF_OBJECTS: 8}
METADATA, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"  # Orbax writes them last of all, after the sums
WITHOUT_SUM = (SUMS, SUMS_OF_OBJECTS, METADATA, COMMITTED)
READERS = 4  # files read at once
PATTERNS = "*?[]"  # what Orbax takes for a pattern in the path of its own checkpoints


def check_path(folder: Path) -> None:
    """Raises ValueError for a folder whose checkpoints could be written and not read again."""
    if found := sorted({letter for letter in str(absolute(folder)) if letter in PATTERNS}):
        raise ValueError(
            f"{absolute(folder)} has {' '.join(found)} in its path, which is read as a pattern of names where"
            " checkpoints are restored; choose a folder without, or a symbolic link to it with another name"
        )


def checkpoint_steps(run: Path) -> list[int]:
    """The complete checkpoints of a run directory, in order."""
    named = [path for path in (run / FOLDER).glob("*") if path.name.isascii() and path.name.isdigit()]
    return sorted(int(path.name) for path in named if not is_object(run) or (path / COMMITTED).is_file())


def sums_of(folder: Path) -> Path:
    """The list of a checkpoint's sums."""
    return folder / (SUMS_OF_OBJECTS if is_object(folder) else SUMS)


def newest_whole(run: Path, under: str = "") -> tuple[int | None, dict[int, str]]:
    """The newest checkpoint of a run whose files (those below `under`) are as they were saved, or None.

    Beside it what is wrong with each newer one, in words.
    """
    wrong: dict[int, str] = {}
    for step in reversed(checkpoint_steps(run)):
        problem = damage(run, step, under)
        if problem is None:
            return step, wrong
        wrong[step] = problem
    return None, wrong


def damage(run: Path, step: int, under: str = "") -> str | None:
    """What of a checkpoint (of its files below `under`) is not as it was saved, in words; None when all is.

    One without sums is whole when no earlier one has any: it is from before they were written.
    """
    folder = run / FOLDER / str(step)
    sums = sums_of(folder)
    if not sums.is_file():
        expected = any(sums_of(run / FOLDER / str(s)).is_file() for s in checkpoint_steps(run) if s < step)
        return f"{sums} is missing" if expected else None
    try:
        saved = _parse(sums.read_text(), sums.name)
        json.loads((folder / METADATA).read_text())
        present = _digests(folder, under)
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {error}"
    saved = {name: digest for name, digest in saved.items() if name.startswith(f"{under}/" if under else "")}
    for name in sorted({*saved, *present}):
        if name not in present:
            return f"{folder / name} is missing"
        if name not in saved:
            return f"{folder / name} is not listed in {sums.name}"
        if present[name] != saved[name]:
            if is_object(folder):
                return f"CRC32C of {folder / name} is {present[name]}, was {saved[name]} when saved"
            size, digest = (folder / name).stat().st_size, present[name]
            return f"SHA-256 of {folder / name} ({size} bytes) is {digest[:16]}, was {saved[name][:16]} when saved"
    return None


def write_sums(folder: Path) -> None:
    """Lists the sums of all files below `folder` in it, and forces the list to the disk."""
    text = "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items())
    if is_object(folder):
        write(sums_of(folder), text.encode())
        return
    with open(folder / SUMS, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _parse(text: str, kind: str) -> dict[str, str]:
    lines = [line.partition("  ") for line in text.removesuffix("\n").split("\n")]
    broken = any(len(digest) != DIGITS[kind] or not name for digest, _, name in lines)
    if not lines or not text.endswith("\n") or broken:
        raise ValueError(f"{kind} is cut off or no list of sums")
    return {name: digest for digest, _, name in lines}


def _digests(folder: Path, under: str = "") -> dict[str, str]:
    """Name below `folder` -> SHA-256 (of objects CRC32C), of every file below `folder`/`under` that has one; hidden
    files are not ours.
    """
    if is_object(folder):
        prefix = f"{under}/" if under else ""
        objects = {f"{prefix}{name}": digest for name, digest in checksums(folder / under).items()}
        return {name: digest for name, digest in objects.items() if name not in WITHOUT_SUM}
    files = [path for path in sorted((folder / under).rglob("*")) if path.is_file() and not path.name.startswith(".")]
    names = [path.relative_to(folder).as_posix() for path in files]
    wanted = [(name, path) for name, path in zip(names, files, strict=True) if name not in WITHOUT_SUM]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip([name for name, _ in wanted], pool.map(_digest, [path for _, path in wanted]), strict=True))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
