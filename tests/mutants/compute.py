"""The breaks of what runs cost, and of curves over it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

PASSES, SAMPLES = "tests/model/test_compute.py", "tests/infer/test_work.py"
RUNS, SIGMOID, FITS = "tests/train/test_compute.py", "tests/analysis/test_scaling.py", "tests/launch/test_fit.py"
LOOP = "tests/train/test_loop.py::test_updates_without_end_stop_the_run_and_keep_the_batch"

COMPUTE = (
    # passes
    Mutant("model/compute.py", "once * read + core * ran", "once * read + core * read", PASSES),
    Mutant("model/compute.py", "RECURRENCE_EXPONENT = 0.46", "RECURRENCE_EXPONENT = 0.38", PASSES),
    Mutant("model/compute.py", '{"injection", *(f"layer_{i}"', '{*(f"layer_{i}"', PASSES),
    Mutant("model/depth/measures.py", "jnp.minimum(depth, grad_steps)", "depth", PASSES),
    Mutant("model/latent.py", "lambda x: (thoughts + 1) * x", "lambda x: x", PASSES),
    # samples
    Mutant("infer/work.py", "apart = going & (by_sample | (start > 0))", "apart = going & (start > 0)", SAMPLES),
    Mutant("infer/work.py", "(rollout.lengths - start).sum()", "rollout.lengths.sum()", SAMPLES),
    # runs
    Mutant("train/compute.py", "max(started, self._ended)", "started", RUNS),
    Mutant("train/compute.py", "trains=True) + sampled", "trains=True)", RUNS),
    Mutant("train/loop.py", "self.meter.restore(spent or self.meter.state())", "pass", RUNS),
    Mutant(
        "rl/source.py", '{"rollout/update": float(place)}, 0', '{"rollout/update": float(place)}, self._flops', RUNS
    ),
    Mutant("train/pending.py", "np.savez(file, **arrays)", "np.savez(file)", LOOP),
    Mutant("train/pending.py", "simple=True", "simple=False", LOOP),
    # curves
    Mutant("analysis/scaling.py", "INSIDE, 1 - INSIDE)", "INSIDE, 1 - 20 * INSIDE)", SIGMOID),
    Mutant("analysis/scaling.py", "if not EDGES[0] < fit.asymptote < EDGES[1]:", "if False:", SIGMOID),
    Mutant("analysis/scaling.py", "compute.max() and not fit.flat:", "compute.max() and False:", SIGMOID),
    Mutant("launch/fit.py", "(compute <= until * compute[-1])", "(compute <= compute[-1])", FITS),
    Mutant("launch/fit.py", "(compute > asked.skip * compute[-1])", "(compute > 0)", FITS),
    Mutant("launch/results.py", "found + (0.0 if metric in CUMULATIVE else total)", "found + total", FITS),
)
