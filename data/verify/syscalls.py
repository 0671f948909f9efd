"""The filter of system calls under which programs run in the sandbox: a list of what they may not call.

Written for the kernel's classic BPF (seccomp(2)). It takes away what reaches past namespaces or past the limit on
memory: sockets of every family (some know no namespaces), new namespaces and mounts, the memory, descriptors and limits
of other processes, keys, kernel interfaces with a history of faults, and memory that is no process's.
"""

import struct
from typing import Any

ALLOW, KILL, DENY, MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
FOREIGN = 0x40000000  # numbers of the x32 ABI begin here
# Every CLONE_NEW* flag.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# Types of sockets but streams: a pair of datagram sockets can send to any other socket, by its name.
NO_STREAM = 0xE
CLONE3 = 435
# These have the same numbers everywhere.
COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447, "process_mrelease": 448,
    "open_tree_attr": 467,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "socketpair": 53,
        "own": {
            "prlimit64": 302, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
            "sched_setattr": 314,
        },
        "denied": {
            "socket": 41, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
            "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "bpf": 321,
            "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250,
            "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
            "open_by_handle_at": 304, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240,
            "move_pages": 279, "migrate_pages": 256, "fanotify_init": 300,
        },
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "socketpair": 199,
        "own": {
            "prlimit64": 261, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122,
            "sched_setattr": 274,
        },
        "denied": {
            "socket": 198, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "bpf": 280,
            "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219,
            "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273,
            "open_by_handle_at": 265, "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180,
            "move_pages": 239, "migrate_pages": 238, "fanotify_init": 262,
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
    for number in (*known["denied"].values(), *COMMON.values()):
        steps += _returning(EQUAL, number, DENY)
    for number in known["own"].values():  # 0 is the caller
        steps += _if_no(number, FIRST_ARGUMENT, 0xFFFFFFFF)
    steps += _if_no(known["socketpair"], SECOND_ARGUMENT, NO_STREAM)
    steps += _if_no(known["clone"], FIRST_ARGUMENT, NAMESPACES)
    steps.append(_step(RETURN, ALLOW))
    return b"".join(steps)


def _if_no(number: int, argument: int, bits: int) -> tuple[bytes, ...]:
    """Five steps: for this system call, allow it where the argument has none of these bits; go on for any other."""
    allowed = (_step(LOAD, argument), *_returning(ANY_BIT, bits, DENY), _step(RETURN, ALLOW))
    return _step(EQUAL, number, 0, len(allowed)), *allowed


def _returning(test: int, value: int, result: int) -> tuple[bytes, bytes]:
    """Two steps: return the result where the test holds, go on where it does not."""
    return _step(test, value, 0, 1), _step(RETURN, result)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
