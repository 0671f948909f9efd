"""Folders that a hostile program leaves are removed, and nothing outside of them is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.verify import removal
from data.verify.removal import hold, remove

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is judged on Linux")
NOBODY = 65534
# Run with OUT, a folder that must stay as it is, in the folder that is removed afterwards.
LEAVES = {
    "an unreadable folder": "os.chmod('.', 0)",
    "unreadable folders in it": "os.makedirs('a/b/c'); open('a/b/f', 'w').close()\n"
    "for name in ('a/b/c', 'a/b', 'a'): os.chmod(name, 0)",
    "folders that may not be written": "os.makedirs('a/b/c')\n"
    "for name in ('a/b/c', 'a/b', 'a', '.'): os.chmod(name, 0o500)",
    "a folder to write only": "os.mkdir('a'); open('a/f', 'w').close(); os.chmod('a', 0o200)",
    "sticky and set-id bits": "os.mkdir('a'); open('a/f', 'w').close(); os.chmod('a', 0o7000); os.chmod('.', 0o7000)",
    "folders deeper than paths are long": "for _ in range(30):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    "os.chmod('.', 0)",
    "folders deeper than Python recurses": "for _ in range(300):\n    os.mkdir('d'); os.chdir('d')",
    "many files and folders": "for n in range(100): open(f'f{n}', 'w').close(); os.mkdir(f'd{n}')",
    "links out of it": "os.symlink(OUT, 'l'); os.symlink(OUT + '/f', 's'); os.mkdir('x'); os.symlink('/', 'x/root')\n"
    "os.symlink('..', 'x/up'); os.chmod('x', 0)",
    "a hard link": "os.link(OUT + '/f', 'h')",
    "a loop of links": "os.symlink('b', 'a'); os.symlink('a', 'b'); os.symlink('.', 'c')",
    "names of odd bytes": "os.mkdir(b'\\xff\\n'); open(b'\\xff\\n/\\x01\\xc3', 'w').close()\n"
    "open(b'-rf *', 'w').close(); open(b'a' * 255, 'w').close()",
    "pipes": "os.mkfifo('p'); os.mkdir('s'); os.mkfifo('s/p')",
    "itself moved, and a link in its place": "here = os.getcwd(); os.rename(here, here + '.moved')\n"
    "os.symlink(OUT, here)",
    "itself moved, and a folder in its place": "here = os.getcwd(); os.rename(here, here + '.moved'); os.mkdir(here)",
    "itself removed": "os.rmdir(os.getcwd())",
}


def users() -> list[int]:
    """Root, for whom modes mean little, runs the tests as somebody else, too."""
    return [0, NOBODY] if os.geteuid() == 0 else [os.geteuid()]


@pytest.mark.parametrize("user", users())
@pytest.mark.parametrize("kind", LEAVES, ids=str)
def test_nothing_is_left_and_nothing_else_is_gone(kind: str, user: int) -> None:
    top = Path(os.path.realpath("/tmp")) / f"sagax-removal-{os.getpid()}-{user}"
    out, folder = top / "out", top / "base" / "folder"
    try:
        for place in (out / "kept", folder):
            place.mkdir(parents=True)
        (out / "f").write_text("kept")
        (out / "f").chmod(0o600)
        script = (
            f"import importlib.util, os, sys\nsys.setrecursionlimit(100)\nOUT, folder = {str(out)!r}, {str(folder)!r}\n"
            f"spec = importlib.util.spec_from_file_location('removal', {str(top / 'removal.py')!r})\n"
            "removal = importlib.util.module_from_spec(spec); spec.loader.exec_module(removal)\n"
            f"held = removal.hold(folder); os.chdir(folder)\n{LEAVES[kind]}\nos.chdir('/')\n"
            "removal.remove(folder, held)"
        )
        shutil.copy(removal.__file__, top)
        for path in [top, *top.rglob("*")]:
            os.chown(path, user, -1)
        command = ["/usr/bin/python3" if user == NOBODY else sys.executable, "-c", script]
        if user == NOBODY and not Path(command[0]).exists():
            pytest.skip("no interpreter that everybody may read")
        subprocess.run(command, check=True, timeout=60, user=user)
        assert list((top / "base").iterdir()) == []
        assert (out / "f").read_text() == "kept" and (out / "f").stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in out.iterdir()) == ["f", "kept"]
    finally:
        shutil.rmtree(top, ignore_errors=True)


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    held = hold(str(tmp_path / "a"))
    (tmp_path / "a").rmdir()
    remove(str(tmp_path / "a"), held)
    assert list(tmp_path.iterdir()) == []
