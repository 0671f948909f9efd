"""The filter of system calls, run step by step as the kernel does, and tried in the sandbox."""

import os
import re
import socket
import struct
from pathlib import Path

import pytest

from data.verify.confined import Limits, run, unavailable
from data.verify.syscalls import (
    ALLOW,
    ANY_BIT,
    ARCHITECTURES,
    AT_LEAST,
    CLONE3,
    COMMON,
    DENY,
    EQUAL,
    FOREIGN,
    LOAD,
    MISSING,
    RETURN,
    filter_program,
)

PATIENT = Limits(seconds=20.0)
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")
MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def filtered(machine: str, number: int, *arguments: int) -> int:
    """What the kernel would return for a system call: a run of the filter."""
    known, whole = ARCHITECTURES[machine], filter_program(machine)
    data = struct.pack("<IIQ6Q", number, known["audit"], 0, *arguments, *[0] * (6 - len(arguments)))
    steps, at, value = list(struct.iter_unpack("=HBBI", whole)), 0, 0
    while True:
        code, yes, no, operand = steps[at]
        if code == RETURN:
            return operand
        if code == LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
            at += 1
            continue
        holds = {EQUAL: value == operand, AT_LEAST: value >= operand, ANY_BIT: value & operand}[code]
        at += 1 + (yes if holds else no)


@MACHINES
def test_the_filter_denies_what_it_names_and_allows_the_rest(machine: str) -> None:
    known = ARCHITECTURES[machine]
    assert len(filter_program(machine)) // 8 < 4096
    denied = {*known["denied"].values(), *COMMON.values()}
    special = {known["clone"], known["socketpair"], CLONE3, *known["own"].values()}
    for number in range(600):
        found = filtered(machine, number)
        assert found == (DENY if number in denied else MISSING if number == CLONE3 else ALLOW), number
        assert number in special or filtered(machine, number, -1 & 2**64 - 1, -1 & 2**64 - 1) == found
    for number in known["own"].values():
        assert filtered(machine, number, 1) == filtered(machine, number, 0xFFFFFFFF) == DENY
    assert filtered(machine, known["clone"], 0x10000011) == DENY
    kinds = [socket.SOCK_STREAM, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK]
    found = [filtered(machine, known["socketpair"], 1, kind) for kind in (*kinds, 2, 3, 5, 6, 10)]
    assert found == [ALLOW] * 2 + [DENY] * 5
    assert filtered(machine, FOREIGN + 1) == DENY
    assert filter_program("vax") == b""


@MACHINES
def test_the_filter_has_the_numbers_of_the_kernel(machine: str) -> None:
    header = Path("/usr/include", HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"no {header} here")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    known = ARCHITECTURES[machine]
    mine = {**known["denied"], **known["own"], **COMMON, "socketpair": known["socketpair"], "clone": known["clone"]}
    assert {name: number for name, number in mine.items() if int(numbers.get(name, number)) != number} == {}


@works
def test_no_system_call_reaches_into_another_process() -> None:
    known = ARCHITECTURES[os.uname().machine]
    numbers = sorted({*known["denied"].values(), *COMMON.values(), *known["own"].values()})
    program = f"""import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print([n for n in {numbers} if libc.syscall(n, 1, -1, -1, -1, -1, -1) != -1 or ctypes.get_errno() != 1])"""
    assert run(program, b"", PATIENT, "namespaces").stdout == b"[]\n"


@works
def test_programs_may_use_what_stays_inside() -> None:
    program = (
        "import asyncio, os, resource, socket\nasync def main(): return 6 * 7\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); os.sched_setaffinity(0, os.sched_getaffinity(0))\n"
        "a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1), asyncio.run(main()))"
    )
    assert run(program, b"", PATIENT, "namespaces").stdout == b"b'x' 42\n"
