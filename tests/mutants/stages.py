"""The breaks of stages, preferences, reward models and distillation."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

GRAPH, PIPELINE = "tests/train/test_graph.py", "tests/train/test_pipeline.py"
PAIRS, LOSSES = "tests/train/test_pairs.py", "tests/train/test_preference_losses.py"
REWARDS, MODEL = "tests/train/test_reward_losses.py", "tests/infer/test_reward_model.py"
TEACHER, DISTANCES = "tests/train/test_distill.py", "tests/train/test_distillation_losses.py"
DIRECTORY = "tests/train/test_run_directory.py"
JOBS, STEPS, TRACES = "tests/rl/test_jobs.py", "tests/train/test_process_reward.py", "tests/data/test_task_traces.py"

STAGES = (
    # the graph
    Mutant("train/graph.py", "done.issuperset(stage.needs)", "True", GRAPH),
    Mutant("train/graph.py", "not in LEAVE_NO_MODEL]", "in LEAVE_NO_MODEL]", GRAPH),
    Mutant("train/graph.py", 'for setting in ("name", *stage.edges):', 'for setting in ("name",):', GRAPH),
    Mutant("train/graph.py", "inputs |= {path: _file_digest", "_ = {path: _file_digest", GRAPH),
    Mutant("train/picture.py", "column = max((places[name][0] + 1 ", "column = max((places[name][0] ", GRAPH),
    Mutant("train/settings.py", 'if "from" in found:', 'if "start" in found:', GRAPH),
    # how stages run
    Mutant("train/pipeline.py", "if upstream or other:", "if other:", PIPELINE),
    Mutant("train/pipeline.py", "if recorded.get(name) != digest]", "if name not in recorded]", PIPELINE),
    Mutant("train/pipeline.py", "needed |= set(stage.needs)", "pass", PIPELINE),
    Mutant("store/records.py", "for line in lines[:count]", "for line in lines", PIPELINE),
    Mutant("train/jobs/merge.py", "[1 / len(models)] * len(models)", "[1.0] * len(models)", PIPELINE),
    Mutant("train/jobs/export.py", "setup.tokenizer.save(folder)", "pass", PIPELINE),
    Mutant("train/jobs/base.py", "setup.tokenizer.save(folder)", "pass", PIPELINE),
    Mutant("rl/jobs/sample.py", "keep_lines(workdir / name, lines)", "pass", PIPELINE),
    Mutant(
        "rl/jobs/sample.py",
        "jax.random.fold_in(jax.random.key(self.setup.config.seed), number)",
        "jax.random.key(self.setup.config.seed + len(asked) * 0 + id(self) % 97)",
        PIPELINE,
    ),
    Mutant("store/run_directory.py", "return _fixed(before)", "return _fixed(_plain(config))", DIRECTORY),
    Mutant("store/run_directory.py", 'f"{name}.".startswith(', "name.startswith(", DIRECTORY),
    Mutant("settings/table.py", "group[last] = row.default", "group[last] = None", DIRECTORY),
    Mutant(
        "store/run_directory.py",
        'if bool(before.get("stages")) != bool(config.stages):',
        "if False:",
        DIRECTORY,
    ),
    # what becomes of samples
    Mutant(
        "rl/jobs/filters.py", "~(values >= bound_of(rules.least[name]))", "values < bound_of(rules.least[name])", JOBS
    ),
    Mutant("rl/jobs/filters.py", "(labels == label).mean() if label >= 0 else 0.0", "(labels == label).mean()", JOBS),
    Mutant("rl/jobs/filters.py", '"shortest": lengths,', '"shortest": -lengths,', JOBS),
    Mutant("rl/jobs/pairs.py", "if apart <= rules.margin:", "if apart < 0:", JOBS),
    Mutant("rl/jobs/pairs.py", "better = (first + second) / 2", "better = first", JOBS),
    Mutant("rl/jobs/judge.py", "return first[:, 0], 1 - first[:, 1]", "return first[:, 0], first[:, 1]", JOBS),
    Mutant("rl/jobs/score.py", "weights[name] * np.nan_to_num(values)", "np.nan_to_num(values)", JOBS),
    Mutant("rl/jobs/texts.py", 'if name not in (WRITTEN, ABOUT, "scores")', "if name != WRITTEN", JOBS),
    Mutant("data/tasks/base.py", "if WRITTEN in example else", "if False else", JOBS),
    Mutant(
        "rl/reward_functions.py",
        "return own / (own + other) if own + other else 0.0",
        "return own / max(len(thought), 1)",
        JOBS,
    ),
    # pairs
    Mutant("data/sources/pairs.py", 'if example["chosen"] == example["rejected"]:', "if False:", PAIRS),
    Mutant("data/sources/pairs.py", "tokenizer.eos_id] for side in SIDES)", "] for side in SIDES)", PAIRS),
    Mutant(
        "train/objectives/pairs.py",
        "asked[:, n, self._rows.prompt_length - len(prompt) :]",
        "asked[:, n, : len(prompt)]",
        PAIRS,
    ),
    Mutant("train/objectives/pairs.py", "self._pairs[(number + 1) % len(self._pairs)]", "self._pairs[number]", PAIRS),
    Mutant(
        "train/objectives/preference.py",
        "jnp.arange(batch.rows) % rules.rows_per_pair == 0",
        "jnp.arange(batch.rows) % rules.rows_per_pair == 1",
        PAIRS,
    ),
    Mutant(
        "train/objectives/preference.py", "x[n::each] for x in arrays", "x[each - 1 - n :: each] for x in arrays", PAIRS
    ),
    Mutant(
        "train/completions.py",
        "jnp.arange(self.columns) < self.lengths[:, None]",
        "jnp.arange(self.columns) <= self.lengths[:, None]",
        PAIRS,
    ),
    Mutant("train/completions.py", "lengths=batch.lengths + 1)", "lengths=batch.lengths)", f"{PAIRS} {MODEL}"),
    Mutant("train/frozen.py", "arrays = measure()", "arrays = {name: x * 0 for name, x in measure().items()}", PAIRS),
    Mutant("train/initial.py", 'if name != "head"}', "if name}", PAIRS),
    Mutant(
        "train/objectives/preference_losses.py",
        "rules.beta * (values.x - values.y) - rules.margin",
        "rules.beta * (values.x - values.y)",
        LOSSES,
    ),
    Mutant("train/objectives/preference_losses.py", "jnp.maximum(apart.mean(), 0)", "apart.mean()", LOSSES),
    Mutant("train/objectives/preference_losses.py", "near = x > -math.log(2)", "near = x > 0", LOSSES),
    # models that score
    Mutant("train/objectives/reward_losses.py", "(chosen + rejected) ** 2", "chosen**2 + rejected**2", REWARDS),
    Mutant("train/objectives/reward_losses.py", "wanted = labels != IGNORED", "wanted = labels >= 1", REWARDS),
    Mutant(
        "train/objectives/reward.py", "sure[inside].mean() - right[inside].mean()", "sure[inside].mean() - 1", PAIRS
    ),
    Mutant(
        "train/objectives/reward.py",
        "bradley_terry(scores[0::2], scores[1::2]",
        "bradley_terry(scores[1::2], scores[0::2]",
        PAIRS,
    ),
    Mutant(
        "train/objectives/process_reward.py",
        "model.scores(params, out.hidden), batch.labels)",
        "model.scores(params, out.hidden), jnp.maximum(batch.labels, 0))",
        STEPS,
    ),
    Mutant("data/sources/steps.py", "[IGNORED] * (len(whole) - 1) + [", "[IGNORED] * (len(whole) - 1) + [0 * ", STEPS),
    Mutant("infer/reward_model.py", "while len(ids) > 1 and ids[-1] == pad:", "while False:", MODEL),
    Mutant(
        "infer/reward_model.py",
        "order, parts = np.argsort([-len(row) for row in rows]",
        "order, parts = np.argsort([0 * len(row) for row in rows]",
        MODEL,
    ),
    Mutant("rl/reward_model.py", "(found - shift) * scale", "found * scale", MODEL),
    Mutant(
        "model/hf/scores.py",
        'if kind == "ForSequenceClassification" else None',
        "if kind else None",
        "tests/model/test_hf_scores.py",
    ),
    Mutant(
        "model/hf/scores.py",
        '"ForSequenceClassification": False',
        '"ForSequenceClassification": True',
        "tests/model/test_hf_scores.py",
    ),
    Mutant("model/lm.py", 'scores + params["score_bias"].astype(jnp.float32)', "scores", STEPS),
    # teachers
    Mutant(
        "train/objectives/distillation_losses.py", "student + jnp.log(1 - beta)", "student + jnp.log(beta)", DISTANCES
    ),
    Mutant(
        "train/objectives/distillation_losses.py",
        "present[..., :top_k], ~seen]",
        "present[..., :top_k], seen | True]",
        DISTANCES,
    ),
    Mutant(
        "train/objectives/distillation_losses.py",
        ".reshape(rows, -1)[:, :columns]",
        ".reshape(rows, -1)[:, -columns:]",
        DISTANCES,
    ),
    Mutant(
        "train/objectives/distill.py",
        "batch.ids[:, :-1], batch.logps[:, :-1]",
        "batch.ids[:, 1:], batch.logps[:, 1:]",
        TEACHER,
    ),
    Mutant("train/objectives/distill.py", "distance + rules.hard * missed", "missed", TEACHER),
    Mutant(
        "data/sources/demonstrations.py",
        "learnt = np.arange(len(ids)) >= (len(prompt)",
        "learnt = np.arange(len(ids)) > (len(prompt)",
        TEACHER,
    ),
    Mutant("train/teacher.py", "if a != b), None)", "if False), None)", TEACHER),
    Mutant(
        "rl/distillation.py",
        "np.where(mask > 0, teacher_logps - logps, 0.0)\n    return discounted",
        "np.where(mask > 0, logps - teacher_logps, 0.0)\n    return discounted",
        "tests/rl/test_distillation.py",
    ),
    Mutant(
        "rl/distillation.py",
        "before = np.cumsum(size, 1) - size",
        "before = np.cumsum(size, 1)",
        "tests/rl/test_distillation.py",
    ),
    Mutant(
        "rl/teaching.py",
        "prompts = [asked[group] for group in rollout.group_of]",
        "prompts = [asked[0] for group in rollout.group_of]",
        "tests/rl/test_teaching.py",
    ),
    Mutant("rl/teaching.py", "return (by_token + own)", "return (by_token - own)", "tests/rl/test_teaching.py"),
    # tasks, tokens, studies
    Mutant(
        "data/tasks/traced_addition.py",
        "draw.random() < self.foreign_share else step",
        "draw.random() < 0.9 else step",
        TRACES,
    ),
    Mutant("data/tasks/journeys.py", "[: draw.randint(0, self.wrong_turns)]", "[:1]", TRACES),
    Mutant(
        "data/tokenizers/words.py",
        "known.pop(piece, None)",
        'known[piece] = b""',
        "tests/data/test_tokenizer_trained.py",
    ),
    Mutant(
        "data/tokenizers/words.py",
        "if self._apart is not None and self._apart.search(text)",
        "if False",
        "tests/data/test_tokenizer_trained.py",
    ),
    Mutant(
        "analysis/studies/roads.py", "- shift for seed in seeds]", "for seed in seeds]", "tests/analysis/test_roads.py"
    ),
    Mutant("analysis/studies/proxy.py", "gold[best] - gold[-1]", "gold[0] - gold[-1]", "tests/analysis/test_roads.py"),
    Mutant(
        "launch/runs.py",
        "if all(other.complete for other in run.after)",
        "if run",
        "tests/launch/test_pipeline_launch.py",
    ),
    Mutant(
        "launch/pipeline.py",
        "after = tuple(runs[name] for name in stage.needs)",
        "after = ()",
        "tests/launch/test_pipeline_launch.py",
    ),
)
