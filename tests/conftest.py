"""What every test shares: eight virtual CPU devices, exact matrix products, a compilation cache, fixtures."""

import gc
import itertools
import os
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICES = "--xla_force_host_platform_device_count=8"
# Each pytest worker has one core to itself: more threads would only make the workers wait for one another.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# Tests compile much and compute little: without LLVM's optimisation passes they take three fifths of the time.
QUICK_COMPILE = "--xla_backend_optimization_level=0"
# Linux allows a process 65,530 memory mappings; compiled programs take some each and are never let go by themselves.
MAPPINGS, EVERY = 25_000, 8
MAPS = Path("/proc/self/maps")
TESTS = itertools.count(1)


def prepare_environment() -> None:
    """Set what JAX reads once, when it is first imported."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    wanted = [DEVICES, QUICK_COMPILE, *([ONE_THREAD] if "PYTEST_XDIST_WORKER" in os.environ else [])]
    flags += [flag for flag in wanted if not any(flag.split("=")[0] in given for given in flags)]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "Agg")


prepare_environment()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Their arrays' shapes and kinds of numbers are checked wherever the tests call them, also while a program is traced.
CHECKED = (
    "infer.sampling",
    *("model.attention", "model.norms", "model.rope", "model.routing"),
    *("rl.advantages", "rl.kl", "rl.masks", "rl.objectives", "rl.returns"),
)
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_CACHE", str(ROOT / ".cache" / "jax")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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


@pytest.fixture
def parity_seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for every run, so that parity never rests on one draw; PARITY_SEED=n repeats a failure."""
    seed = int(os.environ.get("PARITY_SEED") or random.SystemRandom().randrange(2**31))
    request.node.add_report_section("setup", "parity seed", f"repeat with PARITY_SEED={seed}")
    return seed
