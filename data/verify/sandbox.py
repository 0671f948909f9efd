"""Puts one Python program into a sandbox and runs it. A script: `python -I -S sandbox.py SPEC`, SPEC a descriptor.

With `isolation: "namespaces"` the program gets user, mount, process, network, IPC and host-name namespaces of its own:
it sees the read-only folders of the interpreter and an empty `/tmp` in memory, no other process and no network. With
`"none"` it only gets the resource limits and the filter of system calls. It must stand alone: it runs without the
package and without site-packages.
"""

import ctypes
import json
import os
import platform
import resource
import select
import signal
import sys
from typing import Any

FAILED = 97
CLONE = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000}
CLONE["net"] = 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
# Users that no system gives out, one for each sandbox that root starts: the limit on processes counts by user.
FIRST_USER = 0x60000000
MAIN = "/tmp/main.py"

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Starts the program in a child and returns how it ended: its status, or 128 and the signal."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        spec = json.load(file)
    user = os.geteuid()
    inside = user or FIRST_USER + os.getpid()
    if spec["isolation"] == "namespaces":
        leave(user)
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        become(spec, inside, alive)
    for descriptor in (0, 1, alive):
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def become(spec: dict[str, Any], user: int, alive: int) -> None:
    """Turns this process into the program; never returns."""
    try:
        build(spec) if spec["isolation"] == "namespaces" else enter(spec, user)
        for kind, amount in spec["limits"].items():
            limit(getattr(resource, f"RLIMIT_{kind}"), amount)
        drop(user)
        die_with_parent(alive)
        restrict(bytes.fromhex(spec["filter"]))
        complaints = os.dup(2)  # closed by exec
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 2)
        execute(spec, complaints)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)


def execute(spec: dict[str, Any], complaints: int) -> None:
    """Replaces this process by the interpreter, in isolated mode, without site-packages and environment.

    Its limit on the digits of numbers is for servers without a limit on time; here it would refuse what is right.
    """
    main_file = MAIN if spec["isolation"] == "namespaces" else os.path.join(spec["folder"], "main.py")
    python = spec["python"]
    try:
        os.execve(
            python,
            [python, "-I", "-S", "-B", "-X", "int_max_str_digits=0", main_file, *spec["arguments"]],
            {"PYTHONUTF8": "1"},
        )
    except OSError as error:
        os.dup2(complaints, 2)
        hint = "; started by root, programs run as a user of their own, who must be able to read the interpreter"
        raise OSError(f"cannot start {python}: {error}{hint}") from None


def leave(user: int) -> None:
    """Leaves the namespaces of the host; an ordinary user needs one of users for it, root does not."""
    kinds = [kind for kind in CLONE if kind != "user" or user != 0]
    group = os.getegid()
    call("unshare", sum(CLONE[kind] for kind in kinds))
    if user != 0:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
        # No further namespaces from inside; in a namespace of users of our own this binds nobody else.
        write("/proc/sys/user/max_user_namespaces", "0")


def build(spec: dict[str, Any]) -> None:
    """Makes the only file system the program sees, in memory, and enters it."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    # Opened before the mount below can hide them.
    sources = {path: os.open(path, os.O_PATH) for path in spec["binds"]}
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        expose(path, source)
    for link, place in spec["links"].items():
        os.symlink(place, f"/tmp{link}")
    os.mkdir("/tmp/tmp")
    mount("tmpfs", "/tmp/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={spec['disk']},mode=1777,nr_inodes=1024")
    write(f"/tmp{MAIN}", spec["program"])
    os.chdir("/tmp")
    call("syscall", SYS_PIVOT_ROOT[platform.machine()], b".", b".")
    call("umount2", b".", MNT_DETACH)
    attributes("/", ATTR_RDONLY, 0)
    os.chdir("/tmp")


def expose(path: str, source: int) -> None:
    """Shows one file or folder of the host at its own path, read-only."""
    target = f"/tmp{path}"
    device = path.startswith("/dev/")
    if os.path.isdir(f"/proc/self/fd/{source}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write(target, "")
    mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
    if not device:
        attributes(target, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, AT_RECURSIVE)


def enter(spec: dict[str, Any], user: int) -> None:
    """Goes to the folder that stands ready, where there is no isolation."""
    os.chdir(spec["folder"])
    if os.geteuid() == 0:
        os.chown(spec["folder"], user, user)


def limit(kind: int, amount: int) -> None:
    """Lowers a limit for good."""
    hard = resource.getrlimit(kind)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(kind, (amount, amount))


def drop(user: int) -> None:
    """Gives up root for a user of no other process, and every way back."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with_parent(alive: int) -> None:
    """Lets the kernel kill this process with its parent; ends it if the parent is gone already."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    poll = select.poll()
    poll.register(alive, select.POLLIN)
    if poll.poll(0):
        os._exit(FAILED)


class Filter(ctypes.Structure):
    """The kernel's `sock_fprog`: how many steps there are, and where."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def restrict(steps: bytes) -> None:
    """Lays a filter of system calls on this process and all it will start; none where it is empty."""
    if steps:
        program = Filter(len(steps) // 8, steps)
        call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """The system call."""
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), data.encode())


def attributes(target: str, flags: int, how: int) -> None:
    """Sets attributes of a mount, and of the mounts below it with AT_RECURSIVE (Linux 5.12)."""
    wanted = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), how, ctypes.byref(wanted), ctypes.c_size_t(32))


def call(name: str, *arguments: Any) -> None:
    """Calls the C library, and raises OSError where it fails."""
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def write(path: str, text: str) -> None:
    """Writes a file."""
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


if __name__ == "__main__":
    try:
        status = main()
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        status = FAILED
    os._exit(status)
