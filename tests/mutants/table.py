"""The breaks: where, what stands there, what stands there instead, and which tests must fail then."""

from __future__ import annotations

from tests.mutants.compute import COMPUTE
from tests.mutants.depth import DEPTH
from tests.mutants.mutant import Mutant
from tests.mutants.stages import STAGES
from tests.mutants.thoughts import THOUGHTS

GATE, OURO, RECURRENT = "tests/train/test_exit_gate.py", "tests/model/test_ouro.py", "tests/model/test_depth.py"
OPTIMIZER = "tests/train/test_optimizer.py"

CONFIGS = (
    Mutant("configs/common.py", 'text or "true")', 'text or "false")', "tests/test_configs.py"),
    Mutant("configs/common.py", "if key not in defaults:", "if not defaults:", "tests/test_configs.py"),
)

MODEL = (
    # inside a pass
    Mutant(
        "model/hooks.py",
        "jnp.where(jnp.isnan(patch), x, patch.astype(x.dtype))",
        "jnp.where(jnp.isnan(patch), x, x)",
        "tests/model/test_hooks.py",
    ),
    Mutant(
        "model/hooks.py",
        "reached = jnp.arange(x.shape[0])[:, None] < depth",
        "reached = jnp.arange(x.shape[0])[:, None] <= depth",
        "tests/model/test_hooks.py",
    ),
    # attention
    Mutant(
        "model/attention.py",
        "scores = jnp.where(mask[:, None], scores, -1e30)",
        "scores = jnp.where(mask[:, None], scores, -1.0)",
        "tests/model/test_model_forward.py",
    ),
    Mutant("model/attention.py", "c.head_dim) ** -0.5", "c.head_dim) ** -1.0", "tests/model/test_small_golden.py"),
    Mutant(
        "model/blocked_attention.py",
        "visible & (distance < window)",
        "visible & (distance <= window)",
        "tests/model/test_model_forward.py",
    ),
    Mutant(
        "model/blocked_attention.py",
        "ds = (p * (dp - delta[..., None]))",
        "ds = (p * (dp + delta[..., None]))",
        "tests/model/test_blocked_attention.py",
    ),
    Mutant(
        "model/blocked_attention.py",
        "mixed * shrink[..., None] + more",
        "mixed + more",
        "tests/model/test_blocked_attention.py",
    ),
    Mutant("model/cache.py", "(0, 0, index, 0)", "(0, 0, index - 1, 0)", "tests/model/test_model_forward.py"),
    # positions and norms
    Mutant(
        "model/rope.py",
        "rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)",
        "rotated = jnp.concatenate([first * cos + second * sin, second * cos - first * sin], -1)",
        "tests/model/test_small_golden.py",
    ),
    Mutant("model/rope.py", "np.clip(smooth, 0.0, 1.0)", "np.clip(smooth, 0.0, 2.0)", "tests/model/test_rope_kinds.py"),
    Mutant("model/rope.py", "mscale * math.log(factor) + 1.0", "mscale * math.log(factor)", "tests/model/test_mla.py"),
    Mutant(
        "model/norms.py",
        "wide = wide - jnp.mean(wide, -1, keepdims=True)",
        "wide = wide * 1",
        "tests/model/test_norms.py",
    ),
    # latent attention
    Mutant("model/mla.py", "rope.mscale_all_dim) ** 2", "rope.mscale_all_dim)", "tests/model/test_mla.py"),
    Mutant("model/mla.py", "turned = q[..., nope:]", "turned = 0 * q[..., nope:]", "tests/model/test_mla.py"),
    # experts
    Mutant(
        "model/routing.py",
        "stop_gradient(scores + bias)",
        "stop_gradient(scores - bias)",
        "tests/model/test_moe_routing.py",
    ),
    Mutant(
        "model/routing.py",
        "jnp.where(kept > 0, grouped, -jnp.inf)",
        "jnp.where(kept > 0, grouped, 0.0)",
        "tests/model/test_moe_routing.py",
    ),
    Mutant(
        "model/routing.py",
        "jnp.sign(load.mean() - load)",
        "jnp.sign(load - load.mean())",
        "tests/model/test_moe_routing.py",
    ),
    Mutant(
        "model/routing.py",
        "squares = jnp.square(",
        "squares = jnp.abs(",
        "tests/model/test_moe_routing.py",
    ),
    Mutant("model/moe.py", "if segments is None else segments > 0", "", "tests/model/test_moe_layer.py"),
    Mutant(
        "model/dispatch.py",
        "* gate[:, None]).astype(rows.dtype)",
        "* 1.0).astype(rows.dtype)",
        "tests/model/test_moe_dispatch.py",
    ),
    Mutant(
        "model/peer/retrieval.py",
        "places[..., :, None] * keys.shape[2]",
        "places[..., :, None] * keys.shape[1]",
        "tests/model/test_peer.py",
    ),
    Mutant("model/peer/layer.py", "jnp.maximum(n - 1, 1)", "jnp.maximum(n, 1)", "tests/model/test_peer.py"),
    # recurrences and depth
    Mutant("model/convolution.py", "(segments != before)", "(segments == before)", "tests/model/test_mingru.py"),
    Mutant(
        "model/convolution.py",
        "same = _columns(owner, at) == held",
        "same = _columns(owner, at) > 0",
        "tests/model/test_mingru.py tests/model/test_delta.py",
    ),
    Mutant(
        "model/delta_rule.py", "fade[..., -1, :, None] * k", "k + 0 * still[..., None]", "tests/model/test_delta.py"
    ),
    Mutant("model/delta_rule.py", "jnp.where(part == 0,", "jnp.where(part >= 0,", "tests/model/test_delta.py"),
    Mutant("model/delta_rule.py", "start = _passed_on(chunks, start, ring)", "pass", "tests/model/test_delta.py"),
    Mutant(
        "model/delta.py",
        "jnp.where(real[..., None, None], part, 0.0) for part",
        "part for part",
        "tests/model/test_delta.py",
    ),
    Mutant(
        "model/attention.py",
        "weights.sum(-1, keepdims=True) + jnp.exp(last - top)",
        "weights.sum(-1, keepdims=True)",
        "tests/model/test_layer_settings.py",
    ),
    Mutant("model/blocked_attention.py", "[..., 0] - dlse", "[..., 0]", "tests/model/test_blocked_attention.py"),
    Mutant(
        "model/expert_parallel.py",
        'jax.lax.axis_index("tensor") == 0',
        'jax.lax.axis_index("tensor") >= 0',
        "tests/model/test_moe_sharding.py",
    ),
    Mutant("model/ffn.py", "-how.limit, how.limit)", "0.0, how.limit)", "tests/model/test_moe_dispatch.py"),
    Mutant("model/norms.py", "scale = 1.0 + scale", "scale = scale", "tests/model/test_layer_settings.py"),
    Mutant(
        "model/rope.py",
        "Rotation(width, window is not None and",
        "Rotation(width,",
        "tests/model/test_layer_settings.py",
    ),
    Mutant(
        "model/block.py",
        "return x + norm(name, y, True) if",
        "return norm(name, x + y, True) if",
        "tests/model/test_layer_settings.py",
    ),
    Mutant("model/delta.py", "unit(q) * s.key**-0.5, unit(k)", "q * s.key**-0.5, k", "tests/model/test_delta.py"),
    Mutant(
        "model/recurrence.py",
        "following = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], 1)",
        "following = a",
        "tests/model/test_linear.py tests/model/test_mingru.py",
    ),
    Mutant(
        "model/depth/unrolled.py",
        "still = jax.lax.stop_gradient((variables, e))",
        "still = (variables, e)",
        "tests/model/test_depth.py",
    ),
    Mutant("model/depth/state.py", "(1 - gate) * e", "gate * e", "tests/model/test_depth.py"),
    Mutant(
        "model/depth/draw.py", "jnp.exp(noise - config.sigma**2 / 2)", "jnp.exp(noise)", "tests/model/test_depth.py"
    ),
    Mutant("model/depth/exit.py", "run + 1, 0)", "run + 1, run)", "tests/model/test_depth.py"),
    # precision, prediction ahead, prompts read once
    Mutant("model/precision.py", "LARGEST = 448.0", "LARGEST = 480.0", "tests/model/test_precision.py"),
    Mutant(
        "model/mtp.py",
        "shifted[1] == segments, segments, 0)",
        "shifted[1] == segments, segments, segments)",
        "tests/model/test_mtp.py",
    ),
    Mutant("model/prefix.py", "x / parts, self.reports)", "x, self.reports)", "tests/rl/test_update_plan.py"),
    # Hugging Face
    Mutant("model/hf/rope.py", "longest / rope[key])", "1.0)", "tests/model/test_hf_config.py"),
    Mutant(
        "model/hf/rope.py",
        'theta = rope.pop("rope_theta", None) or values["rope_local_base_freq"]',
        'theta = values["rope_local_base_freq"]',
        "tests/model/test_hf_windowed_config.py",
    ),
    Mutant(
        "model/hf/quantised.py", "[codes & 15, codes >> 4]", "[codes >> 4, codes & 15]", "tests/model/test_hf_mxfp4.py"
    ),
    Mutant("model/hf/quantised.py", "start - TOGETHER * groups.start", "start", "tests/model/test_hf_mxfp4.py"),
    Mutant("model/hf/gemma.py", '"norm": "peri"', '"norm": "sandwich"', "tests/model/test_hf_windowed_config.py"),
    Mutant(
        "model/hf/gemma.py",
        "config.query_scalar or config.head_dim",
        "config.query_scalar or 256",
        "tests/model/test_hf_windowed_config.py",
    ),
    Mutant("model/hf/gpt_oss.py", '"glu_offset": 1.0', '"glu_offset": 0.0', "tests/model/test_hf_windowed_config.py"),
    Mutant(
        "model/hf/gpt_oss.py",
        '"attention_bias": config.qkv_bias,',
        "",
        "tests/model/test_hf_windowed_config.py",
    ),
    Mutant("model/hf/qwen3_next.py", "if (i + 1) % every", "if i % every", "tests/model/test_hf_windowed_config.py"),
    Mutant(
        "model/hf/qwen3_next.py",
        "config.delta.filled(config.n_heads, config.head_dim)",
        "config.delta",
        "tests/model/test_hf_windowed_config.py",
    ),
    Mutant("model/hf/layout.py", "(slice(None), *bounds[1:])", "tuple(bounds)", "tests/model/test_hf_layout.py"),
    Mutant(
        "model/hf/tables.py",
        '"e d (f n) -> n e d f"',
        '"e d (n f) -> n e d f"',
        "tests/model/test_hf_experts_weights.py",
    ),
    Mutant("model/hf/decoder.py", '"gelu_new": "gelu_tanh",', '"gelu_new": "gelu",', "tests/model/test_hf_config.py"),
    Mutant("model/hf/loading.py", "if source.shape != expected:", "if False:", "tests/model/test_hf_weights.py"),
    Mutant("model/hf/saving.py", "used + size > limit", "used > limit", "tests/model/test_hf_weights.py"),
    Mutant("model/hf/values.py", "not kinds[key].holds(value)", "False", "tests/model/test_hf_hostile.py"),
)

DATA = (
    Mutant(
        "data/sources/packing.py",
        "positions[:size] = np.arange(size)",
        "positions[:size] = np.arange(size) + 1",
        "tests/data/test_pipeline.py",
    ),
    Mutant("data/sources/packing.py", "segments[:size] = 1", "segments[:] = 1", "tests/data/test_pipeline.py"),
    Mutant("data/sources/text.py", '"answer" else 0 :] = 1.0', '"all" else 0 :] = 1.0', "tests/data/test_pipeline.py"),
    Mutant("data/sources/source.py", ".seed(seed).shuffle()", ".seed(0).shuffle()", "tests/data/test_pipeline.py"),
    Mutant(
        "data/sources/source.py",
        "return data[self.index :: self.count]",
        "return data[:: self.count]",
        "tests/data/test_pipeline.py",
    ),
    Mutant("data/tokenizers/decoding.py", "REPLACEMENT * len(part)", "REPLACEMENT", "tests/data/test_decoding.py"),
    Mutant("data/tasks/addition.py", "carry = total // 10", "carry = 0", "tests/data/test_task_addition.py"),
    Mutant("data/tasks/addition.py", "{min(a, b)}+{max(a, b)}", "{a}+{b}", "tests/data/test_task_addition.py"),
    Mutant(
        "data/verify/numbers.py",
        "left is not None and right is not None and left == right",
        "left == right",
        "tests/data/test_numbers.py",
    ),
    Mutant("data/verify/pool.py", "if not 0.0 <= score <= 1.0:", "if score < 0.0:", "tests/data/test_pool.py"),
    Mutant("data/verify/pool.py", "self.timeouts += 1", "self.deaths += 1", "tests/data/test_pool.py"),
    # selection
    Mutant("data/select/accuracy.py", "scores[key], reverse=True", "scores[key]", "tests/rl/test_select.py"),
    Mutant("data/select/accuracy.py", "np.square(1 - mean).sum()", "np.square(mean).sum()", "tests/rl/test_select.py"),
    Mutant(
        "data/select/pool.py",
        "(stable_hash(asked[row]), example_key(self.rows[row]))",
        "row",
        "tests/data/test_select_rules.py",
    ),
    Mutant("data/select/pool.py", "value not in (0, 1)", "value is None", "tests/data/test_select_s1.py"),
    Mutant("data/select/s1.py", "len(lengths) - 1 - np.argsort", "np.argsort", "tests/data/test_select_s1.py"),
    Mutant(
        "data/select/s1.py",
        "chosen, draws = generator(seed), by_domain(domains), set(seeds)",
        "chosen, draws = generator(seed), by_domain(domains), set()",
        "tests/data/test_select_s1.py",
    ),
    Mutant("data/select/s1.py", "int(count * ratio)", "round(count * ratio + 0.5)", "tests/data/test_select_s1.py"),
    Mutant("data/select/limo.py", "WEIGHTS[name] for name", "1 for name", "tests/data/test_select_rules.py"),
    Mutant(
        "data/select/limo.py",
        "plan.least <= right <= plan.most",
        "plan.least <= right < plan.most",
        "tests/data/test_select_rules.py",
    ),
    Mutant("data/select/pairs.py", "short = ends[0]", "short = ends[-1]", "tests/data/test_select_rules.py"),
    Mutant(
        "data/select/pairs.py", "if min(lengths) == max(lengths)", "if not lengths", "tests/data/test_select_rules.py"
    ),
    Mutant("data/select/simple.py", "lengths[row], reverse=True", "lengths[row]", "tests/data/test_select_rules.py"),
    Mutant(
        "data/select/simple.py",
        "generator(seed).permutation",
        "generator(0).permutation",
        "tests/data/test_select_rules.py",
    ),
    Mutant(
        "data/select/overlap.py",
        "range(max(len(words) - size, 0) + 1)",
        "range(max(len(words) - size, 0))",
        "tests/data/test_select_overlap.py",
    ),
    Mutant("data/select/overlap.py", '{text.strip()} - {""}', "{text.strip()}", "tests/data/test_select_overlap.py"),
    Mutant(
        "data/select/near.py", "if most >= threshold:", "if most > threshold / 2:", "tests/data/test_select_overlap.py"
    ),
    Mutant(
        "data/select/near.py",
        "len(left & right) / len(left | right)",
        "len(left & right) / len(left)",
        "tests/data/test_select_overlap.py",
    ),
    Mutant(
        "data/select/rules.py",
        'left, rest = keep("highest scores", left, fit[: options.number]',
        'left, rest = keep("highest scores", left, fit',
        "tests/data/test_select_rules.py",
    ),
    Mutant(
        "data/select/rules.py",
        "value is not None and value < least",
        "value is None",
        "tests/data/test_select_rules.py",
    ),
    Mutant("data/select/domains.py", "{code, title} <= seen.keys()", "not seen", "tests/data/test_select_s1.py"),
    Mutant(
        "data/select/domains.py",
        "name not in titles and name not in titles.values()",
        "not titles",
        "tests/data/test_select_s1.py",
    ),
    Mutant(
        "data/select/__main__.py",
        "place(options.out).exists() and not options.overwrite",
        "options.overwrite and not options.out",
        "tests/data/test_select_command.py",
    ),
    Mutant(
        "data/select/__main__.py",
        "RULES[rule].choose(pool, left, asked)",
        "RULES[rule].choose(pool, range(len(pool)), asked)",
        "tests/data/test_select_command.py",
    ),
    Mutant("data/expressions.py", "exists & (b != 0)", "exists", "tests/data/test_expressions.py"),
    Mutant("data/expressions.py", "        at -= size(operand)", "        at -= 1", "tests/data/test_expressions.py"),
    Mutant(
        "data/verify/outputs.py",
        "for reply in replies[1:]]",
        "for reply in replies[:-1]]",
        "tests/data/test_outputs.py",
    ),
    Mutant(
        "data/verify/outputs.py",
        "outcome.stopped or outcome.status or",
        "outcome.stopped or",
        "tests/data/test_outputs.py",
    ),
    Mutant(
        "data/tasks/planted.py",
        "goes_on else written if written == len(block) else 0",
        "goes_on else written",
        "tests/data/test_task_planted.py",
    ),
    Mutant(
        "data/tasks/planted.py", "- (start + self.keys) + 1", "- (start + self.keys)", "tests/data/test_task_planted.py"
    ),
)

INFER = (
    Mutant(
        "infer/drawing.py",
        "jnp.where(logits < smallest, NEVER",
        "jnp.where(logits <= smallest, NEVER",
        "tests/infer/test_sampler.py",
    ),
    Mutant(
        "infer/drawing.py",
        "jnp.cumsum(probabilities, -1) - probabilities",
        "jnp.cumsum(probabilities, -1)",
        "tests/infer/test_sampler.py",
    ),
    Mutant(
        "infer/drawing.py",
        "logits.astype(jnp.float32) / temperature",
        "logits.astype(jnp.float32)",
        "tests/infer/test_sampler.py",
    ),
    Mutant("infer/drawing.py", "+ jnp.log(rule.min_p)", "- jnp.log(sampling.min_p)", "tests/infer/test_sampler.py"),
    Mutant(
        "infer/prefill.py",
        "jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)",
        "jnp.cumsum(mask, 1)",
        "tests/infer/test_sampler.py",
    ),
    Mutant(
        "analysis/studies/budget_forcing.py", "row[waits] - row[0]", "row[waits]", "tests/analysis/test_test_time.py"
    ),
    Mutant(
        "analysis/studies/budget_forcing.py",
        'removeprefix("<t>")',
        'removeprefix("")',
        "tests/analysis/test_test_time.py",
    ),
    Mutant(
        "analysis/studies/equal_compute.py",
        "samples.prompt + k * samples.each",
        "k * samples.each",
        "tests/analysis/test_test_time.py",
    ),
    Mutant(
        "data/tasks/running_sums.py",
        "self.slip * self.repair**number",
        "self.slip",
        "tests/data/test_task_running_sums.py",
    ),
    Mutant(
        "data/tasks/running_sums.py",
        "slip * (place >= first)",
        "slip * (place == first)",
        "tests/data/test_task_running_sums.py",
    ),
    Mutant("settings/strategies.py", "if option not in known:", "if not known:", "tests/infer/test_strategies.py"),
    Mutant(
        "settings/strategies.py",
        "if self.at_once and self.weights:",
        "if self.at_once and not self.weights:",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/budget.py",
        "return len(stop) + max(read - at, 0)",
        "return len(stop)",
        "tests/infer/test_budget.py",
    ),
    Mutant("infer/budget.py", "marks.end[len(marks.stop) :]", "marks.end", "tests/infer/test_budget.py"),
    Mutant(
        "infer/forcing.py",
        "jnp.where(forcing.newline[tokens], at[END], at[NEWLINE])",
        "at[NEWLINE]",
        "tests/infer/test_budget.py",
    ),
    Mutant("infer/forcing.py", "(thinking.waited < waits)", "(thinking.waited <= waits)", "tests/infer/test_budget.py"),
    Mutant(
        "infer/forcing.py",
        "segments = jnp.where((ring >= 0) & (ago < back[:, None]), 0, state.cache.segments)",
        "segments = state.cache.segments",
        "tests/infer/test_budget.py",
    ),
    Mutant("infer/thinking.py", "(zero,) * 6", "(zero + 1,) * 6", "tests/infer/test_budget.py"),
    Mutant(
        "infer/asking.py",
        "text[:at] + text[at:][: find_stop(text[at:], stop)]",
        "text[: find_stop(text, stop)]",
        "tests/infer/test_budget.py",
    ),
    Mutant(
        "infer/asking.py",
        "rollout.lengths - own,",
        "rollout.lengths,",
        "tests/infer/test_strategies.py tests/infer/test_budget.py",
    ),
    Mutant(
        "infer/branches.py",
        "replace(jax.tree.map(lambda x: x[rows], prefixes), length=none)",
        "replace(prefixes, length=none)",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/decode.py",
        "hidden, recurrent = where_rows(live, (hidden, recurrent), (state.hidden, state.recurrent))",
        "pass",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/base.py",
        "np.array([rows[0] for rows in members(",
        "np.array([rows[-1] for rows in members(",
        "tests/infer/test_evaluate.py tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/base.py",
        "+ (0 if self.pruned is None else self.pruned)",
        "",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/choose.py",
        "contested[:, None] * n + drawn",
        "contested[:, None] * n",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/choose.py",
        "candidates.logps / (np.maximum(candidates.own, 1) if",
        "candidates.logps / (1 if",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/controls.py",
        "return candidates.finished & (candidates.own <= longest)",
        "return candidates.own <= longest",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/controls.py", "front + spec.task.prompt", "spec.task.prompt", "tests/infer/test_strategies.py"
    ),
    Mutant(
        "infer/strategies/repair.py",
        "open_ = open_[wrong]",
        "open_ = open_[: len(wrong)]",
        "tests/infer/test_strategies.py",
    ),
    Mutant("infer/strategies/repair.py", "reason=verdict.reason", 'reason=""', "tests/infer/test_strategies.py"),
    Mutant(
        "infer/strategies/search.py",
        "np.array([*places, *[0] * more])",
        "np.arange(slots)",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/programs.py",
        "known[text] for text in texts]",
        "known[text] for text in sorted(texts)]",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/programs.py",
        "failed[rows] = [1.0 - verdict.score",
        "failed[rows] = [verdict.score",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "data/tasks/contest.py",
        "min(self.shown, len(cases) - 1)",
        "min(self.shown, len(cases))",
        "tests/data/test_task_contest.py",
    ),
    Mutant("data/tasks/contest.py", '*named)\\n",', '**{{}})\\n",', "tests/data/test_task_contest.py"),
    Mutant(
        "data/sources/fim.py",
        "[sentinels.prefix, sentinels.suffix, *suffix,",
        "[sentinels.suffix, sentinels.prefix, *suffix,",
        "tests/data/test_fim.py",
    ),
    Mutant(
        "data/sources/fim.py",
        "rng.integers(0, len(text) + 1, 2)",
        "rng.integers(0, max(len(text), 1), 2)",
        "tests/data/test_fim.py",
    ),
    Mutant("data/sources/fused.py", "and parts[2] in known:", "or True:", "tests/data/test_fim.py"),
    Mutant("data/sources/fused.py", "rng.random() < share else", "rng.random() > share else", "tests/data/test_fim.py"),
    Mutant(
        "data/sources/mixture.py",
        'self._taken[chosen] += len(element["tokens"])',
        "self._taken[chosen] += 1",
        "tests/data/test_corpus.py",
    ),
    Mutant("data/sources/mixture.py", 'self._rows = state["rows"]', "pass", "tests/data/test_corpus.py"),
    Mutant("data/sources/mixture.py", "self._rest[self._length - filled :]", "[]", "tests/data/test_corpus.py"),
    Mutant("data/sources/corpus.py", "self.tokenizer.eos_id], np.int32)", "], np.int32)", "tests/data/test_corpus.py"),
    Mutant(
        "data/sources/corpus.py",
        "np.setdiff1d(np.arange(count), kept, assume_unique=True)",
        "np.arange(count)",
        "tests/data/test_corpus.py",
    ),
    Mutant("data/sources/documents.py", "order[:most]", "order[: most + 1]", "tests/data/test_corpus.py"),
    Mutant(
        "data/sources/documents.py",
        "part = bisect_right(self._ends, number)",
        "part = bisect_right(self._ends, number - 1)",
        "tests/data/test_corpus.py",
    ),
    Mutant("data/prepare.py", "len(text.encode())))", "len(text) + 1))", "tests/data/test_corpus.py"),
    Mutant(
        "data/prepare.py",
        "if writer is None or held >= shard_mb << 20:",
        "if writer is None:",
        "tests/data/test_corpus.py",
    ),
    Mutant(
        "train/objectives/pretrain.py",
        "held_out_source(corpus, name,",
        "held_out_source(corpus, next(iter(corpus.sources)),",
        "tests/train/test_pretrain.py",
    ),
    Mutant(
        "train/evaluation.py",
        "missed / np.log(2) / max(read, 1)",
        "missed / max(read, 1)",
        "tests/train/test_pretrain.py",
    ),
    Mutant(
        "settings/corpus.py",
        "if bool(source.path) == bool(source.task):",
        "if source.path == source.task:",
        "tests/data/test_corpus.py",
    ),
    Mutant(
        "analysis/studies/infilling.py",
        "[pre, suf, *last, mid, *first] if",
        "[pre, *last, suf, mid, *first] if",
        "tests/analysis/test_infilling.py",
    ),
    Mutant(
        "analysis/studies/infilling.py",
        "parts[(number + 1) % len(parts)][2]",
        "parts[number][2]",
        "tests/analysis/test_infilling.py",
    ),
    Mutant("train/session.py", "        self._calls += 1\n", "", "tests/train/test_by_hand.py"),
    Mutant(
        "data/sources/fim.py",
        "spm = bool(rng.random() < self.spm)\n        for _",
        "spm = bool(rng.random() > self.spm)\n        for _",
        "tests/data/test_fim.py",
    ),
    Mutant("data/verify/inputs.py", "if len(own) != 1:", "if not own:", "tests/data/test_inputs.py"),
    Mutant("data/verify/inputs.py", "digits[0] = rng.integers(1, 10)", "pass", "tests/data/test_inputs.py"),
    Mutant(
        "infer/strategies/search.py",
        "key=lambda node: -node.score",
        "key=lambda node: node.score",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/search.py",
        "distinct.setdefault(node.tokens, node)",
        "distinct[(*node.tokens, len(distinct))] = node",
        "tests/infer/test_strategies.py",
    ),
    Mutant(
        "infer/strategies/estimators.py",
        "math.comb(samples - right, k)",
        "math.comb(right, k)",
        "tests/infer/test_estimators.py",
    ),
    Mutant("infer/strategies/estimators.py", "fewer + y * wins) +", "fewer) +", "tests/infer/test_estimators.py"),
    Mutant(
        "infer/strategies/votes.py",
        "and (yield text, other)",
        "and True",
        "tests/infer/test_votes.py",
    ),
    Mutant(
        "infer/strategies/votes.py",
        "vote + gain < exact[winner]",
        "vote + gain <= exact[winner]",
        "tests/infer/test_votes.py",
    ),
    Mutant("infer/samples.py", "key=size, reverse=True", "key=size", "tests/infer/test_samples.py"),
    Mutant(
        "infer/scoring.py",
        "ends[n] - 1, len(completions[n])",
        "ends[n], len(completions[n])",
        "tests/infer/test_scoring.py",
    ),
    Mutant(
        "infer/scoring.py", "logits.mean(-1) - jnp.log(", "logits.mean(-1) + jnp.log(", "tests/infer/test_scoring.py"
    ),
    Mutant("infer/scoring.py", "max(end - length, 0) : start", "start : start", "tests/infer/test_scoring.py"),
    Mutant("infer/harness.py", "found.greedy.sum(1) ==", "found.greedy.sum(1) <=", "tests/infer/test_lm_eval.py"),
    Mutant("infer/harness.py", "row[max(more, 0) :]", "row[: len(row) - max(more, 0)]", "tests/infer/test_lm_eval.py"),
    Mutant(
        "infer/lm_eval.py",
        "get_close_matches(name, known, n=3)",
        "get_close_matches(name, [])",
        "tests/infer/test_lm_eval.py",
    ),
    Mutant(
        "infer/lm_eval.py",
        'find_spec("lm_eval") is None',
        'find_spec("lm_eval") is not None',
        "tests/infer/test_lm_eval.py",
    ),
    Mutant(
        "store/manifest.py",
        "if present[name] != saved[name]:",
        "if len(found[name]) != len(saved[name]):",
        "tests/train/test_fault_damage.py",
    ),
    Mutant("store/manifest.py", "os.fsync(file.fileno())", "pass", "tests/store/test_manifest.py"),
    Mutant(
        "infer/strategies/clusters.py",
        "accepted.mean(0) >= least",
        "accepted.mean(0) > least",
        "tests/infer/test_clusters.py",
    ),
    Mutant(
        "infer/strategies/clusters.py",
        "- weights.repeated * submitted",
        "+ weights.repeated * submitted",
        "tests/infer/test_clusters.py",
    ),
    Mutant(
        "infer/strategies/submissions.py",
        "for subtask in reversed(range(subtasks)):",
        "for subtask in range(subtasks):",
        "tests/infer/test_submissions.py",
    ),
    Mutant(
        "infer/strategies/submissions.py",
        "| ~evidence.inside[subtask][evidence.subtask_of]",
        "| evidence.inside[subtask][evidence.subtask_of]",
        "tests/infer/test_submissions.py",
    ),
)

TRAIN = (
    Mutant(
        "train/session.py",
        "gradients if self._pending is None else self._add(self._pending, gradients)",
        "gradients",
        "tests/train/test_by_hand.py",
    ),
    Mutant(
        "train/session.py",
        "self._samplings += 1",
        "self._samplings += 0",
        "tests/train/test_by_hand.py",
    ),
    Mutant(
        "train/loop.py",
        "                trainer.leave()\n",
        "                pass\n",
        "tests/train/test_by_hand.py",
    ),
    Mutant(
        "train/notebook.py",
        "if self.ended or not rate:",
        "if not rate:",
        "tests/train/test_metrics.py",
    ),
    Mutant(
        "train/notebook.py",
        "{values[name]:.4g}",
        "{values[name]:.1g}",
        "tests/train/test_metrics.py",
    ),
    Mutant(
        "train/objectives/losses.py",
        "segments[:, 1:] == segments[:, :-1]",
        "segments[:, 1:] >= segments[:, :-1]",
        "tests/train/test_losses.py",
    ),
    Mutant(
        "train/objectives/losses.py",
        "config.mtp.weight / config.mtp.depth",
        "config.mtp.weight",
        "tests/model/test_mtp.py",
    ),
    Mutant("train/objectives/losses.py", "total + count * sum(", "total + sum(", "tests/train/test_losses.py"),
    Mutant("train/accumulate.py", "jax.random.fold_in(key, i)", "key", "tests/train/test_step.py"),
    Mutant(
        "train/objectives/metrics.py",
        "return jnp.maximum, -jnp.inf",
        "return jnp.add, -jnp.inf",
        "tests/train/test_step.py",
    ),
    Mutant("train/optimizer.py", "(step + 1.0) / max(", "step / max(", "tests/train/test_optimizer.py"),
    Mutant("train/optimizer.py", "params, ema, 1 - decay)", "params, ema, decay)", "tests/train/test_optimizer.py"),
    Mutant(
        "train/optimizer.py", "kind not in config.no_decay", "kind in config.no_decay", "tests/train/test_optimizer.py"
    ),
    Mutant(
        "train/step.py", "jnp.isfinite(norm) & jnp.isfinite(total)", "jnp.isfinite(total)", "tests/train/test_step.py"
    ),
    Mutant("train/step.py", "(g / count).astype(g.dtype)", "g.astype(g.dtype)", "tests/train/test_step.py"),
    Mutant("train/sparse_tables.py", "1 - b2**seen", "1 - b2", "tests/train/test_sparse_tables.py"),
    Mutant(
        "train/objectives/exit_gate.py",
        "- config.exit_entropy * entropy",
        "+ config.exit_entropy * entropy",
        "tests/train/test_exit_gate.py",
    ),
    Mutant("train/objectives/exit_gate.py", "losses[:-1] - losses[1:]", "losses[1:] - losses[:-1]", GATE),
    Mutant("train/objectives/exit_gate.py", "jax.lax.stop_gradient(jax.nn.sigmoid(", "(jax.nn.sigmoid(", GATE),
    Mutant("train/objectives/exit_gate.py", "reports = Reports(means=reports.means, work=reports.work)", "pass", GATE),
    Mutant(
        "train/optimizer.py", "False: optax.set_to_zero()", "False: optax.identity()", "tests/train/test_optimizer.py"
    ),
    Mutant("train/setup.py", "axes=model.axes(), trainable=alone)", "axes=model.axes())", GATE),
    Mutant(
        "model/block.py",
        'if c.norm == "peri" else norm',
        'if c.norm == "" else norm',
        "tests/model/test_model_forward.py",
    ),
    Mutant(
        "model/network.py",
        'if c.recurrent.readout == "loop" else s, new',
        "if False else s, new",
        "tests/model/test_depth.py",
    ),
    Mutant("model/depth/exit.py", "threshold=config.exit_threshold) if own", "threshold=0.5) if own", OURO),
    Mutant("model/hf/checks.py", "key not in theirs:", "False:", OURO),
    Mutant("model/hf/recurrent.py", "steps if last is None else last + 1", "steps if last is None else last", OURO),
    Mutant("infer/prefill.py", 'readout != "loop"', 'readout != ""', OURO),
    Mutant(
        "store/checkpoint.py",
        '-metrics.get("answer_loss"',
        'metrics.get("answer_loss"',
        "tests/train/test_evaluation.py",
    ),
    Mutant("store/run_directory.py", "here > there)", "here != there)", "tests/train/test_interrupt.py"),
    Mutant("store/command.py", "words_of(error), 2)", "words_of(error), 1)", "tests/store/test_command.py"),
    Mutant("store/command.py", '" ".join(text.split())', "text", "tests/store/test_command.py"),
)

RL = (
    Mutant(
        "rl/batch.py",
        "mask=rollout.mask.astype(np.float32)",
        "mask=(np.arange(rollout.tokens.shape[1]) < rollout.lengths[:, None]).astype(np.float32)",
        "tests/rl/test_forced.py",
    ),
    Mutant("rl/kl.py", "jnp.expm1(-clipped) + clipped", "jnp.expm1(clipped) - clipped", "tests/rl/test_kl.py"),
    Mutant("rl/kl.py", "jax.lax.stop_gradient(ref_logps)", "ref_logps", "tests/rl/test_kl.py"),
    Mutant("rl/kl.py", "jax.lax.stop_gradient(value - gradient)", "value - gradient", "tests/rl/test_kl.py"),
    Mutant(
        "rl/advantages.py",
        "(mean - rewards) / np.maximum(sizes - 1, 1)",
        "(mean - rewards) / np.maximum(sizes, 1)",
        "tests/rl/test_advantages.py",
    ),
    Mutant("rl/advantages.py", "rewards.std(1, ddof=ddof", "rewards.std(0, ddof=ddof", "tests/rl/test_advantages.py"),
    Mutant("rl/masks.py", "jnp.nan), 1 - share)", "jnp.nan), share)", "tests/rl/test_forms.py"),
    Mutant(
        "rl/masks.py",
        "masked(old_logps, valid) - masked(logps, valid)",
        "masked(logps, valid) - masked(old_logps, valid)",
        "tests/rl/test_forms.py",
    ),
    Mutant(
        "settings/rl.py",
        "low, high = 1 - self.clip_low, 1 + self.clip_high",
        "low, high = 1 - self.clip_high, 1 + self.clip_low",
        "tests/rl/test_objectives.py",
    ),
    Mutant(
        "rl/objectives.py",
        "jnp.minimum(losses, -clip.dual",
        "jnp.maximum(losses, -clip.dual",
        "tests/rl/test_objectives.py",
    ),
    Mutant(
        "rl/objectives.py",
        "return -stop_gradient(jnp.clip(ratio, clip.low, clip.high))",
        "return -jnp.clip(ratio, clip.low, clip.high)",
        "tests/rl/test_forms.py",
    ),
    Mutant("rl/objectives.py", "return rows * max_length", "return rows", "tests/rl/test_objectives.py"),
    Mutant(
        "rl/objectives.py",
        "log_ratio.sum(axis=1, keepdims=True)",
        "log_ratio.mean(axis=1, keepdims=True)",
        "tests/rl/test_forms.py",
    ),
    Mutant(
        "rl/returns.py",
        "jnp.where(valid, reward + gamma * later, later)",
        "jnp.where(valid, reward + gamma * later, 0.0)",
        "tests/rl/test_returns.py",
    ),
    Mutant(
        "rl/returns.py",
        "- beta * masked(penalty, valid)",
        "+ beta * masked(penalty, valid)",
        "tests/rl/test_returns.py",
    ),
    Mutant("rl/control.py", "(step % every == 0)", "(step % every == 1)", "tests/rl/test_control.py"),
    Mutant("rl/control.py", "target, step, -step)", "target, -step, step)", "tests/rl/test_control.py"),
    Mutant("rl/select.py", "rank - 1 if rank > 0", "rank if rank > 0", "tests/rl/test_select.py"),
    Mutant("rl/history.py", "if not self._begun:", "if self._begun:", "tests/rl/test_history.py"),
    Mutant(
        "rl/experience.py",
        "experience.rewards.max(1) != experience.rewards.min(1)",
        "experience.rewards.max(1) > 0",
        "tests/rl/test_experience.py",
    ),
    Mutant("rl/grpo.py", "no_gradient=None if other_terms else", "no_gradient=", "tests/rl/test_update_plan.py"),
    Mutant("rl/rollout.py", "scored.total - costs(", "scored.total + costs(", "tests/rl/test_depth_rl.py"),
    Mutant("rl/reward_functions.py", "np.minimum(value, 0)", "value", "tests/rl/test_rewards.py"),
    Mutant("rl/rewards.py", "parts[gate] >= 1", "parts[gate] >= 0", "tests/rl/test_rewards.py"),
)

ANALYSIS = (
    Mutant(
        "analysis/lens.py",
        "states if normed else model.normed(params, states)",
        "states",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/lens.py",
        "jax.lax.top_k(jax.nn.softmax(logits), k)",
        "jax.lax.top_k(jax.nn.softmax(-logits), k)",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/attention.py",
        "positions[:, :, None] - key_positions[:, None, :]",
        "key_positions[:, None, :] - positions[:, :, None]",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/attention.py",
        "return -jax.scipy.special.xlogy",
        "return jax.scipy.special.xlogy",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/patching.py",
        "chosen = chosen & here",
        "chosen = chosen | here",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/patching.py",
        "here = (columns == column)",
        "here = (columns >= column)",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/gradients.py",
        '{**flatten_dict(params, sep="/"), **flatten_dict(part, sep="/")}',
        '{**flatten_dict(part, sep="/"), **flatten_dict(params, sep="/")}',
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/gradients.py",
        "if any(re.search(pattern, name) for pattern in patterns)}",
        "if all(re.search(pattern, name) for pattern in patterns)}",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/captures.py",
        "x.swapaxes(0, 1) if _looped(model, name) else x",
        "x",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/captures.py",
        "r.prelude <= int(layer[0])",
        "r.prelude < int(layer[0])",
        "tests/analysis/test_inside.py",
    ),
    Mutant(
        "analysis/thoughts.py",
        "first = len(question) + marked",
        "first = len(question)",
        "tests/analysis/test_thought_probe.py",
    ),
    Mutant("analysis/depth.py", "set.intersection(*", "set.union(*", "tests/analysis/test_depth_pictures.py"),
    Mutant(
        "analysis/alignment.py",
        "jnp.where(jnp.eye(cosines.shape[-1], dtype=bool), -jnp.inf, cosines)",
        "cosines",
        "tests/analysis/test_alignment.py",
    ),
    Mutant(
        "analysis/alignment.py",
        "_without(block[order], basis)",
        "block[order]",
        "tests/analysis/test_alignment.py",
    ),
    Mutant(
        "analysis/probes/fitting.py",
        "jnp.where(lengths > by, 1 - by /",
        "jnp.where(lengths > 0, 1 - by /",
        "tests/analysis/test_probes.py",
    ),
    Mutant(
        "analysis/probes/validation.py",
        "np.setdiff1d(order, part, assume_unique=True)",
        "order",
        "tests/analysis/test_probes.py",
    ),
    Mutant("analysis/budget.py", "if b > a]", "if b >= a + 600]", "tests/analysis/test_budget.py"),
    Mutant("analysis/budget.py", "(tokens <= high)", "(tokens < high)", "tests/analysis/test_budget.py"),
    Mutant("analysis/exits.py", "float(np.mean(", "float(np.max(", "tests/analysis/test_exits.py"),
    Mutant(
        "analysis/probes/many.py",
        "table, asked = (unit_by_layer(x, one_layer, 1) for x in arrays)",
        "table, asked = arrays",
        "tests/analysis/test_studies.py",
    ),
    Mutant(
        "analysis/probes/many.py", "(asked @ weights + bias)", "(asked @ weights)", "tests/analysis/test_studies.py"
    ),
    Mutant(
        "analysis/studies/iterations.py",
        "len(prompt) - 1 + np.asarray(bits)",
        "len(prompt) + np.asarray(bits)",
        "tests/analysis/test_studies.py",
    ),
    Mutant(
        "analysis/studies/iterations.py",
        "rng.permuted(labels, axis=1)",
        "labels",
        "tests/analysis/test_studies.py",
    ),
    Mutant(
        "analysis/studies/thoughts.py",
        "sum(map(len, chain.steps[:step]))",
        "sum(map(len, chain.steps[: step + 1]))",
        "tests/analysis/test_studies.py",
    ),
    Mutant(
        "analysis/studies/thoughts.py",
        "row.step - row.thought == offset",
        "row.thought - row.step == offset",
        "tests/analysis/test_studies.py",
    ),
    Mutant(
        "analysis/studies/selection.py",
        "np.append(0.5 ** np.arange(1, bins)",
        "np.append(0.5 ** np.arange(2, bins + 1)",
        "tests/analysis/test_selection_study.py",
    ),
    Mutant(
        "analysis/studies/selection.py",
        "axis=2).sum(1)",
        "axis=1).sum(1)",
        "tests/analysis/test_selection_study.py",
    ),
    Mutant(
        "analysis/studies/contest.py",
        "np.where(beyond, limits, 0)",
        "np.where(beyond, 0, 0)",
        "tests/analysis/test_clusters.py",
    ),
    Mutant(
        "analysis/studies/contest.py",
        "is_right and (number == 0 or solved[sample, number - 1])",
        "is_right",
        "tests/analysis/test_clusters.py",
    ),
    Mutant(
        "analysis/studies/clusters.py", "if gap.low > 0 else", "if gap.low >= 0 else", "tests/analysis/test_clusters.py"
    ),
    Mutant(
        "analysis/studies/clusters.py",
        '"size": Rule(dataclasses.replace(FILTER, size=1.0, repeated=1.0))',
        '"size": Rule(dataclasses.replace(FILTER, size=1.0))',
        "tests/analysis/test_clusters.py",
    ),
    Mutant(
        "analysis/studies/cluster_programs.py", "node.value += 1", "node.value += 0", "tests/analysis/test_clusters.py"
    ),
    Mutant(
        "data/verify/inputs.py",
        "[*own[0].args, *(keyword.value for keyword in own[0].keywords)]",
        "[*own[0].args]",
        "tests/data/test_inputs.py",
    ),
    Mutant(
        "analysis/studies/scripted.py",
        "horizon - written)\n",
        "horizon - written - 1)\n",
        "tests/analysis/test_verifier_free.py",
    ),
    Mutant(
        "analysis/studies/scripted.py",
        "np.cumsum(probabilities) ** n",
        "np.cumsum(probabilities)",
        "tests/analysis/test_verifier_free.py",
    ),
    Mutant(
        "analysis/studies/verifier_free.py",
        "argmax(1), tokens.shape[1])",
        "argmax(1), 0)",
        "tests/analysis/test_verifier_free.py",
    ),
    Mutant(
        "analysis/studies/verifier_free.py",
        "scores.reshape(-1, samples).argmax(1)",
        "scores.reshape(-1, samples).argmin(1)",
        "tests/analysis/test_verifier_free.py",
    ),
)

LAUNCH = (
    Mutant("launch/cost.py", '(2 if kind == "all-reduce" else 1)', "1", "tests/launch/test_plan_text.py"),
    Mutant(
        "launch/cost.py",
        "return 2.0 * math.prod(line.shapes[0].sizes)",
        "return math.prod(line.shapes[0].sizes)",
        "tests/launch/test_plan_text.py",
    ),
    Mutant(
        "launch/roofline.py",
        "return max(times, key",
        "return min(times, key",
        "tests/launch/test_plan.py tests/launch/test_plan_text.py",
    ),
    Mutant(
        "launch/roofline.py",
        "length / (4 * speed)",
        "length / speed",
        "tests/launch/test_plan.py tests/launch/test_plan_text.py",
    ),
    Mutant(
        "launch/results.py",
        "step > (1 - LAST) * steps[-1]",
        "step >= (1 - LAST) * steps[-1]",
        "tests/launch/test_report.py",
    ),
    Mutant("launch/report.py", "table.std(0, ddof=1)", "table.std(0)", "tests/launch/test_report.py"),
    Mutant("settings/run.py", 'queues again", above=0)', 'queues again", low=0)', "tests/launch/test_needs.py"),
    Mutant("launch/on_slurm.py", "math.ceil(60 * needs.hours)", "math.ceil(needs.hours)", "tests/launch/test_slurm.py"),
    Mutant("launch/slices.py", "if 0 in sides:", "if not sides:", "tests/launch/test_needs.py"),
    Mutant("launch/sweep.py", "check_directory(folder, config)", "pass", "tests/launch/test_sweep.py"),
)

DOCS = (
    Mutant("docs/docstrings.py", "parts[::2] = [SPECIAL", "parts[::2] = [CODE", "tests/test_site.py"),
    Mutant("docs/docstrings.py", "if number % 2 and parts", "if parts", "tests/test_site.py"),
    Mutant("docs/conf.py", '        "docs/tasks",\n', "", "tests/test_site.py"),
)

NOTEBOOKS = (
    Mutant("notebooks/execution.py", '"XLA_FLAGS", ', "", "tests/test_notebooks.py::test_a_kernel_is_clean"),
    Mutant(
        "notebooks/execution.py",
        'if output.get("name") != "stderr"',
        "if output",
        "tests/test_notebooks.py::test_stripped_keeps_what_is_said",
    ),
    Mutant("notebooks/comparison.py", "if SAMPLED not in tags", "if not tags", "tests/test_notebooks.py::test_tags"),
    Mutant(
        "notebooks/comparison.py",
        "RELATIVE, ABSOLUTE = 1e-2",
        "RELATIVE, ABSOLUTE = 1e-1",
        "tests/test_notebooks.py::test_claims",
    ),
)

MUTANTS = (
    *CONFIGS,
    *MODEL,
    *DATA,
    *INFER,
    *TRAIN,
    *RL,
    *ANALYSIS,
    *LAUNCH,
    *DOCS,
    *NOTEBOOKS,
    *STAGES,
    *COMPUTE,
    *DEPTH,
    *THOUGHTS,
)
