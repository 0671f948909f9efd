"""What every test shares: eight virtual CPU devices, exact matrix products, a compilation cache, fixtures.

docs/testing.md says how the suite is divided and what a test may cost.
"""

import gc
import itertools
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICES = "--xla_force_host_platform_device_count=8"
# Each pytest worker has one core to itself: more threads would only make the workers wait for one another.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# Tests compile much and compute little. Without LLVM's optimisation passes they take three fifths of the time, and with
# XLA's older emitters of fusions three fifths of that; those are gone since, and a flag that is unknown ends a process.
# `make test-all` compiles as users do.
OLDER = ("--xla_cpu_use_fusion_emitters=false",) if version("jaxlib").startswith("0.10.") else ()
QUICK_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    *OLDER,
)
# Linux allows a process 65,530 memory mappings; compiled programs take some each and are never let go by themselves.
MAPPINGS, EVERY = 25_000, 8
MAPS = Path("/proc/self/maps")
TESTS = itertools.count(1)


def compilation_cache() -> Path:
    """The folder of compiled programs: $JAX_CACHE, or the user's cache folder, which every clone shares.

    Where that cannot be written (no home, a home of another user) a warning says so and the clone keeps its own.
    """
    if given := os.environ.get("JAX_CACHE"):
        return Path(given)
    home = os.environ.get("HOME") and os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home or "", "sagax", f"jax-{version('jax')}")
    try:
        if not folder.is_absolute():
            raise NotADirectoryError("neither XDG_CACHE_HOME nor HOME names a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        own = ROOT / ".cache" / "jax"
        warnings.warn(f"compiled programs are kept in {own}, for this clone alone: {error}", stacklevel=1)
        return own


def prepare_environment() -> None:
    """Set what JAX reads once, when it is first imported, here and in the processes that tests start."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    quick = () if os.environ.get("SAGAX_FULL") else QUICK_COMPILE
    wanted = [DEVICES, *quick, *([ONE_THREAD] if "PYTEST_XDIST_WORKER" in os.environ else [])]
    flags += [flag for flag in wanted if not any(flag.split("=")[0] in given for given in flags)]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ["JAX_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


prepare_environment()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Their arrays' shapes and kinds of numbers are checked wherever the tests call them, also while a program is traced.
CHECKED = (
    "infer.drawing",
    *("model.attention", "model.norms", "model.rope", "model.routing"),
    *("rl.advantages", "rl.kl", "rl.masks", "rl.objectives", "rl.returns"),
)
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

from tests.tiers import (  # noqa: E402, F401
    pytest_collection_modifyitems,
    pytest_runtest_call,
    pytest_runtest_protocol,
)

jax.config.update("jax_default_matmul_precision", "highest")

# Traced programs are millions of objects that live on: a collector that looks at all of them every so often takes most
# of a long session's time. It runs a hundredth as often, and after what is let go below.
gc.set_threshold(200_000, 20, 100)


def pytest_runtest_teardown() -> None:
    """Lets compiled programs go, now and then, before there are more mappings than a process may have."""
    if next(TESTS) % EVERY == 0 and MAPS.is_file() and MAPS.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with reference data too large to keep inside it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"reference data not present: {folder}")
    return folder


@pytest.fixture(scope="module")
def one_device() -> Iterator[pytest.MonkeyPatch]:
    """Runs of a module use one of the eight devices, unless a test asks for a mesh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield patch


@pytest.fixture
def parity_seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for every run, so that parity never rests on one draw; PARITY_SEED=n repeats a failure."""
    seed = int(os.environ.get("PARITY_SEED") or random.SystemRandom().randrange(2**31))
    request.node.add_report_section("setup", "parity seed", f"repeat with PARITY_SEED={seed}")
    return seed
