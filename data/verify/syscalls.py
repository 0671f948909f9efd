"""The filter of system calls under which programs run in the sandbox: a list of what they may not call.

Written for the kernel's classic BPF (seccomp(2)). It takes away what reaches past namespaces or past the limit on
memory: sockets of every family (some know no namespaces), new namespaces and mounts, tracing, keys, kernel interfaces
with a history of faults, and memory that is no process's.
"""

import struct
from typing import Any

ALLOW, KILL, DENY, MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
FOREIGN = 0x40000000  # numbers of the x32 ABI begin here
# Every CLONE_NEW* flag.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
CLONE3 = 435
# io_uring (3), open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, memfd_secret.
COMMON = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 447)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "denied": {
            "socket": 41, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
            "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "bpf": 321,
            "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250,
            "kexec_load": 246, "init_module": 175, "finit_module": 313, "open_by_handle_at": 304,
            "memfd_create": 319, "shmget": 29, "msgget": 68,
        },
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "denied": {
            "socket": 198, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "bpf": 280,
            "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219,
            "kexec_load": 104, "init_module": 105, "finit_module": 273, "open_by_handle_at": 265,
            "memfd_create": 279, "shmget": 194, "msgget": 186,
        },
    },
}  # fmt: skip


def filter_program(machine: str) -> bytes:
    """Returns the filter as the kernel takes it (8 bytes for each step), empty for a machine that is not known."""
    known = ARCHITECTURES.get(machine)
    if known is None:
        return b""
    steps = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, known["audit"], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        *_returning(AT_LEAST, FOREIGN, DENY),
        *_returning(EQUAL, CLONE3, MISSING),  # its flags cannot be seen; the C library falls back on `clone`
    ]
    for number in (*known["denied"].values(), *COMMON):
        steps += _returning(EQUAL, number, DENY)
    steps += [
        _step(EQUAL, known["clone"], 1, 0),
        _step(RETURN, ALLOW),
        _step(LOAD, FIRST_ARGUMENT),
        *_returning(ANY_BIT, NAMESPACES, DENY),
        _step(RETURN, ALLOW),
    ]
    return b"".join(steps)


def _returning(test: int, value: int, result: int) -> tuple[bytes, bytes]:
    """Two steps: return the result where the test holds, go on where it does not."""
    return _step(test, value, 0, 1), _step(RETURN, result)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
