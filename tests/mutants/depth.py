"""The breaks of depth by example and by the gate, and of rewards that reach every iteration."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

PICTURE = "tests/analysis/test_difficulty.py"
DEPTHS, BY_EXAMPLE = "tests/data/test_depths.py", "tests/train/test_depth_by_example.py"
RAMP = "tests/train/test_depth_ramp.py"
DIAL = "tests/data/test_task_automaton.py"
LOOPS, LOOP = "tests/rl/test_loops.py", "tests/train/test_loop.py"
GATE = "tests/rl/test_gate_depths.py"

DEPTH = (
    # a mean that rises
    Mutant("train/depth_ramp.py", "min(step / config.ramp, 1.0)", "step / config.ramp", RAMP),
    Mutant("train/depth_ramp.py", "batch.rows * hosts, self._mean)", "batch.rows * hosts)", RAMP),
    Mutant(
        "model/depth/draw.py",
        "jnp.full(shape, round(mean), jnp.int32)",
        "jnp.full(shape, config.mean, jnp.int32)",
        RAMP,
    ),
    # depth by example
    Mutant("data/depths.py", "% (self.jitter + 1)", "% max(self.jitter, 1)", DEPTHS),
    Mutant("data/depths.py", "(number + 1) % len(examples)", "number", DEPTHS),
    Mutant("data/sources/text.py", 'np.argsort(arrays["depth"], kind="stable")', "np.arange(len(mine))", DEPTHS),
    Mutant("data/tasks/hops.py", 'for _ in range(example["steps"])', 'for _ in range(example["steps"] - 1)', DEPTHS),
    Mutant("data/tasks/hops.py", "cycle[1:] + cycle[:1]", "cycle[:1] + cycle[1:]", DEPTHS),
    Mutant("data/tasks/stepped.py", 'if split == "train":', "if True:", DIAL),
    Mutant("data/tasks/stepped.py", "{example.get('shown', example['steps']):", "{example['steps']:", DEPTHS),
    Mutant("data/tasks/stepped.py", "draw.randrange(10**self._digits)", "draw.randrange(10)", DEPTHS),
    Mutant("train/evaluation.py", "np.repeat(by_question, self._rules.samples)", "self._rules.depths", BY_EXAMPLE),
    Mutant("train/evaluation.py", "batch if depth is None else batch.replace(depth=None)", "batch", BY_EXAMPLE),
    Mutant("infer/rows.py", "order = order[np.argsort(depths[order]", "_ = order[np.argsort(depths[order]", BY_EXAMPLE),
    Mutant("rl/sampling.py", "if depths.max() > max_depth:", "if False:", BY_EXAMPLE),
    Mutant("model/depth/draw.py", 'if config.draw == "task":', "if False:", BY_EXAMPLE),
    Mutant("train/algorithms.py", "if setup.depth_by_example and name not in BY_EXAMPLE:", "if False:", BY_EXAMPLE),
    # rewards over iterations
    Mutant("rl/loops.py", "(alpha if kind", "(1.0 if kind", LOOPS),
    Mutant("rl/loops.py", "stop_gradient(exit_distribution(gates))", "exit_distribution(gates)", LOOPS),
    Mutant("rl/loops.py", "by_loop[-1], last", "by_loop[0], last", LOOPS),
    Mutant("rl/grpo.py", 'options | {"policy_coef": 0.0}', "options", LOOPS),
    Mutant("train/objectives/exit_gate.py", "state, before = out.state, depth", "state, before = None, depth", LOOPS),
    Mutant("rl/teaching.py", "Recurrence(self.depth) if self.depth else None", "None", LOOPS),
    Mutant("rl/reward_functions.py", "np.roll(rows, -1)", "rows", "tests/rl/test_rewards.py -k permuted"),
    Mutant("analysis/difficulty.py", 'SEED.sub("", folder.name)', "folder.name", PICTURE),
    Mutant(
        "analysis/difficulty.py", "max((float(r[FLOPS])", "min((float(r[FLOPS])", "tests/analysis/test_difficulty.py"
    ),
    Mutant("rl/jobs/sample.py", "np.repeat(by_question, self.rules.n)", "np.repeat(1, self.rules.n)", BY_EXAMPLE),
    # depths by the gate
    Mutant("rl/grpo.py", "params = held(model.config, params)", "", GATE),
    Mutant("infer/gate_depths.py", "out.hidden[:, -1:]", "out.hidden[:, :1]", GATE),
    Mutant("infer/gate_depths.py", "return out.state.astype(state.dtype), model", "return state, model", GATE),
    Mutant("infer/gate_depths.py", ".cumsum(0)[:-1] >= threshold", "[:-1] >= threshold", GATE),
    Mutant("infer/gate_depths.py", "jax.random.fold_in(jax.random.fold_in(key, number), GATE)", "key", GATE),
    Mutant("infer/gate_depths.py", "segments.cumsum(1) - 1", "jnp.ones_like(segments).cumsum(1) - 1", GATE),
    Mutant("rl/gate_actions.py", "exits[batch.depth - 1,", "exits[batch.depth % len(exits),", GATE),
    Mutant("rl/actions.py", '"logps": actions.logps, ', '"logps": constant, ', GATE),
    Mutant("analysis/exits.py", "if criterion == PROMPT_GATE:", "if False:", "tests/analysis/test_exits.py"),
    # what a killed run leaves
    Mutant("store/checkpoint.py", "best_fn=rank,", "", LOOP),
    Mutant("train/loop.py", "if saved is None else saved", "", LOOP),
)
