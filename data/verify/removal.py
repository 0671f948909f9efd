"""Removes a folder whose contents were made by a program that nobody trusts, and nothing outside of it."""

import contextlib
import os
import secrets
from pathlib import Path

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
ROUNDS = 3  # a process that outlived its program may still write there


def hold(folder: str) -> int:
    """Returns a descriptor of a folder, by which it is found wherever a program moves it."""
    return os.open(folder, FOLDER)


def remove(folder: str, held: int) -> None:
    """Removes the folder that `held` is a descriptor of, which was made as `folder`; closes the descriptor.

    It and the folders in it may be unreadable, moved, replaced by links, nested without end. Links are removed, never
    followed. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for _ in range(ROUNDS):
            _empty(held)
            with contextlib.suppress(OSError):
                _unlist(held)
                break
    # What a program may have put in its place.
    with contextlib.suppress(OSError):
        os.unlink(folder) if Path(folder).is_symlink() else os.rmdir(folder)
    os.close(held)


def _unlist(held: int) -> None:
    """Removes an empty folder from the one that it is in now; OSError where that does not work."""
    *above, name = Path(os.readlink(f"/proc/self/fd/{held}")).parts
    with contextlib.ExitStack() as stack:
        parent = None
        for part in above:  # step by step: none of them may have become a link
            parent = os.open(part, FOLDER, dir_fd=parent)
            stack.callback(os.close, parent)
        if os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(held)):
            os.rmdir(name, dir_fd=parent)


def _empty(held: int) -> None:
    """Removes what is in a folder. Its folders are brought up to it one by one, so that none is ever deep in it."""
    top = _opened(held)
    try:
        while folders := [name for name in os.listdir(top) if not _unlinked(name, top)]:
            for name in folders:
                with contextlib.suppress(OSError):
                    _lift(name, top)
                    os.rmdir(name, dir_fd=top)
            if set(os.listdir(top)) <= set(folders):
                return  # nothing has come up: what is left cannot be removed
    finally:
        os.close(top)


def _lift(name: str, top: int) -> None:
    """Removes the files of a folder in `top`, and moves its folders into `top`."""
    held = os.open(name, FOLDER, dir_fd=top)
    try:
        inside = _opened(held)
    finally:
        os.close(held)
    try:
        for child in os.listdir(inside):
            if not _unlinked(child, inside):
                # A folder that may not be written cannot be moved to another one.
                below = os.open(child, FOLDER, dir_fd=inside)
                _allow(below)
                os.close(below)
                os.rename(child, secrets.token_hex(8), src_dir_fd=inside, dst_dir_fd=top)
    finally:
        os.close(inside)


def _unlinked(name: str, folder: int) -> bool:
    """Removes a file or a link; returns whether it is gone, which a folder never is."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return True
    return False


def _opened(held: int) -> int:
    """Returns a descriptor for reading a folder, whatever its mode was."""
    _allow(held)
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)


def _allow(held: int) -> None:
    """Gives the owner every right on what a descriptor stands for, and on no other: a path could be a link by now."""
    with contextlib.suppress(OSError):
        os.chmod(f"/proc/self/fd/{held}", 0o700)
