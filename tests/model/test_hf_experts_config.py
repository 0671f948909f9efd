"""config.json <-> ModelConfig of the families with experts: spellings, defaults, placement, and what must not pass in
silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig
from model.config import MLAConfig, MoEConfig, MTPConfig, RopeConfig
from model.hf.config import _computed

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 48,
}
QWEN = ("qwen2_moe", "qwen3_moe")
DEEPSEEK = ("deepseek_v2", "deepseek_v3")
FOLDERS = ("mixtral", "qwen3moe", "qwen3moe_nonorm_mlp0", "qwen2moe_shared", "deepseek_v3")


def read(family: str, **settings: Any) -> ModelConfig:
    if family == "deepseek_v2":
        settings = {"num_experts_per_tok": 2} | settings
    return ModelConfig.from_hf({"model_type": family, **SIZES, **settings})


def there_and_back(config: ModelConfig) -> ModelConfig:
    return ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())))


@pytest.mark.parametrize("family", ["mixtral", *QWEN])
def test_both_names_of_the_number_of_experts(family: str) -> None:
    assert read(family, num_experts=9) == read(family, num_local_experts=9)
    assert read(family, num_experts=9, num_local_experts=9).moe.n_experts == 9
    with pytest.raises(ValueError, match=r"num_local_experts=9 contradicts num_experts=8"):
        read(family, num_experts=8, num_local_experts=9)


def test_names_of_deepseek() -> None:
    v3 = {"n_group": 1, "topk_group": 1}
    assert read("deepseek_v3", num_local_experts=9, **v3) == read("deepseek_v3", n_routed_experts=9, **v3)
    assert read("deepseek_v3", num_mtp_layers=2) == read("deepseek_v3", num_nextn_predict_layers=2)
    assert read("deepseek_v2", num_experts=9).moe.n_experts == 9


def test_defaults_belong_to_the_family() -> None:
    """Those of the config classes of transformers."""
    experts = {family: read(family).moe for family in ("mixtral", *QWEN, *DEEPSEEK)}
    counts = {family: (moe.n_experts, moe.top_k, moe.d_expert) for family, moe in experts.items()}
    assert counts == {
        "mixtral": (8, 2, 0),
        "qwen2_moe": (60, 4, 1408),
        "qwen3_moe": (128, 8, 768),
        "deepseek_v2": (64, 2, 1407),
        "deepseek_v3": (256, 8, 2048),
    }
    assert {family: moe.normalize for family, moe in experts.items()} == {
        "mixtral": True,
        "qwen2_moe": False,
        "qwen3_moe": False,
        "deepseek_v2": False,
        "deepseek_v3": True,
    }
    assert read("mixtral").rope.theta == 1e6 and read("qwen3_moe").rope.theta == 1e4
    assert read("mixtral").norm_eps == 1e-5 and read("mixtral").window is None
    assert read("qwen2_moe").qkv_bias and not read("qwen2_moe").out_bias
    assert (experts["qwen2_moe"].d_shared, experts["qwen2_moe"].shared_gate) == (5632, True)
    v3 = read("deepseek_v3")
    assert v3.mla == MLAConfig(1536, 512, 128, 64, 128) and v3.mtp == MTPConfig(depth=1)
    assert (v3.moe.n_groups, v3.moe.top_groups, v3.moe.scale, v3.moe.first_dense) == (8, 4, 2.5, 3)
    assert (v3.moe.score, v3.moe.balance, v3.moe.group_score) == ("sigmoid", "bias", "top2")
    assert v3.rope.interleaved and not read("deepseek_v3", rope_interleave=False).rope.interleaved
    assert read("deepseek_v2").rope.interleaved and read("deepseek_v2").mtp.depth == 0


def test_biases() -> None:
    assert not read("qwen2_moe", qkv_bias=False, attention_bias=True).qkv_bias
    assert read("qwen3_moe", attention_bias=True).out_bias
    assert not read("mixtral", attention_bias=True).qkv_bias


def test_windows() -> None:
    on = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}
    assert read("mixtral", sliding_window=5).window == 5
    assert read("qwen3_moe", **on).window == 6
    assert read("qwen3_moe", sliding_window=6).window is None
    assert read("qwen2_moe", **on).window == (6, None, 6, None)
    assert read("qwen2_moe", use_sliding_window=False, sliding_window=0).window is None


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize(
    "step, dense, places, numbers",
    [
        (1, [], "eeee", (0, 1)),
        (2, [], "gege", (0, 2)),
        (1, [0, 1], "ggee", (2, 1)),
        (2, [1], "ggge", (3, 1)),
        (1, [1], "egee", None),
        (1, [0, 1, 2, 3], "gggg", (4, 1)),
    ],
)
def test_placement_in_qwen(
    family: str, step: int, dense: list[int], places: str, numbers: tuple[int, int] | None
) -> None:
    config = read(family, decoder_sparse_step=step, mlp_only_layers=dense)
    assert config.per_layer("ffn") == tuple({"e": "moe", "g": "glu"}[place] for place in places)
    assert (config.ffn == "moe") == (numbers is not None)
    assert numbers is None or (config.moe.first_dense, config.moe.every) == numbers
    assert there_and_back(config).per_layer("ffn") == config.per_layer("ffn")


@pytest.mark.parametrize("family", DEEPSEEK)
@pytest.mark.parametrize(
    "dense, step, places", [(0, 1, "eeee"), (1, 1, "geee"), (4, 1, "gggg"), (0, 2, "egeg"), (1, 2, "ggeg")]
)
def test_placement_in_deepseek(family: str, dense: int, step: int, places: str) -> None:
    config = read(family, first_k_dense_replace=dense, moe_layer_freq=step)
    assert config.per_layer("ffn") == tuple({"e": "moe", "g": "glu"}[place] for place in places)
    assert there_and_back(config).per_layer("ffn") == config.per_layer("ffn")


def test_placement_that_deepseek_cannot_say() -> None:
    config = read("deepseek_v3").replace(ffn=("glu", "moe", "glu", "moe"))
    with pytest.raises(ValueError, match=r"cannot express .*ffn=\('glu', 'moe', 'glu', 'moe'\)"):
        config.to_hf()


@pytest.mark.parametrize(
    "method, groups, read_as", [("greedy", (4, 2), (1, 1, "max")), ("group_limited_greedy", (4, 2), (4, 2, "max"))]
)
def test_ways_to_choose_in_v2(method: str, groups: tuple[int, int], read_as: tuple[int, int, str]) -> None:
    moe = read("deepseek_v2", topk_method=method, n_group=groups[0], topk_group=groups[1]).moe
    assert (moe.n_groups, moe.top_groups, moe.group_score) == read_as
    assert (moe.score, moe.balance, moe.normalize) == ("softmax", "none", False)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("coefficient", [0.0, 0.001, 0.02, 0.0123456789])
def test_the_coefficient_of_the_balance_loss_survives(family: str, coefficient: float) -> None:
    config = read(family, router_aux_loss_coef=coefficient)
    assert config.moe.balance == ("batch" if coefficient else "none")
    # transformers' loss is top_k at perfect balance and counted once, ours 1 in each of the layers.
    total = config.moe.loss_weight * config.per_layer("ffn").count("moe")
    assert total == pytest.approx(coefficient * config.moe.top_k)
    assert config.to_hf()["router_aux_loss_coef"] == coefficient


def test_the_balance_losses_of_deepseek() -> None:
    v2 = {seq: read("deepseek_v2", aux_loss_alpha=0.003, seq_aux=seq).moe for seq in (True, False)}
    assert {seq: (moe.balance, moe.loss_weight) for seq, moe in v2.items()} == {
        True: ("sequence", 0.003),
        False: ("batch", 0.003),
    }
    assert read("deepseek_v2").moe.balance == "none"
    assert read("deepseek_v3", aux_loss_alpha=0.001).moe.loss_weight == 0.001
    assert read("deepseek_v3").moe.loss_weight == MoEConfig(balance="bias").loss_weight


def test_older_spelling_of_yarn() -> None:
    yarn = {"factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}
    yarn |= {"original_max_position_embeddings": 64}
    older = read("deepseek_v2", rope_theta=1e4, rope_scaling={"type": "yarn", **yarn})
    assert older == read("deepseek_v2", rope_parameters={"rope_theta": 1e4, "rope_type": "yarn", **yarn})
    assert (older.rope.mscale_all_dim, older.rope.interleaved) == (0.707, True)


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("deepseek_v32", {}, "'deepseek_v32' is not supported: .*indexer"),
        ("hrm_text", {}, "'hrm_text' is not supported: .*stacks"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method='greedy' is not supported, only 'noaux_tc'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
        ("deepseek_v3", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("deepseek_v3", {"num_key_value_heads": 2}, r"num_key_value_heads=2.*one per head \(16\)"),
        ("deepseek_v3", {"num_experts_per_tok": None}, "lacks num_experts_per_tok"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
        ("deepseek_v2", {"topk_method": "gready"}, "unknown topk_method 'gready'. Did you mean 'greedy'"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "lacks n_group, topk_group"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 is not supported"),
        ("qwen3_moe", {"num_experts": 4}, r"moe.top_k=8 of only 4"),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
        ("qwen3_moe", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "only quant_method 'fp8'"),
        (
            "deepseek_v3",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}},
            "square weight_block_size",
        ),
    ],
)
def test_what_we_cannot_compute_raises(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(family, **settings)


@pytest.mark.parametrize("folder", ["deepseek_v32", "hrm_text"])
def test_unsupported_files_of_transformers(shared: Path, folder: str) -> None:
    config = json.loads((shared / "tiny_hf" / folder / "config.json").read_text())
    with pytest.raises(ValueError, match=f"model_type '{folder}' is not supported: "):
        ModelConfig.from_hf(config)


@pytest.mark.parametrize(
    "family, change",
    [
        ("mixtral", {"normalize": False}),
        ("mixtral", {"score": "sigmoid"}),
        ("mixtral", {"n_shared": 1}),
        ("qwen3_moe", {"scale": 2.0}),
        ("qwen3_moe", {"balance": "sequence"}),
        ("qwen3_moe", {"capacity_factor": 1.25}),
        ("qwen2_moe", {"shared_gate": False}),
        ("qwen2_moe", {"n_groups": 2}),
        ("qwen3_moe", {"router": "expert_choice", "balance": "none", "aux_weight": None}),
        ("deepseek_v2", {"normalize": True}),
        ("deepseek_v2", {"group_score": "top2", "n_groups": 4}),
        ("deepseek_v3", {"score": "softmax"}),
        ("deepseek_v3", {"balance": "batch"}),
        ("deepseek_v3", {"group_score": "max"}),
    ],
)
def test_what_the_family_cannot_say_raises(family: str, change: dict[str, Any]) -> None:
    config = read(family)
    name = {"n_shared": "d_shared"}.get(next(iter(change)), next(iter(change)))
    moe = MoEConfig(**{**vars(config.moe), **change})
    with pytest.raises(ValueError, match=rf"cannot express .*moe\.{name}=.*family='sagax' can"):
        config.replace(moe=moe).to_hf()


@pytest.mark.parametrize("change", [{"mixer": "gqa"}, {"mtp": MTPConfig(1)}, {"rope": RopeConfig()}])
def test_what_deepseek_v2_cannot_say_raises(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"cannot express .*{next(iter(change))}"):
        read("deepseek_v2").replace(**change).to_hf()


def test_how_experts_are_run_and_trained_is_no_part_of_the_file() -> None:
    config = read("deepseek_v3")
    moe = MoEConfig(**{**vars(config.moe), "dispatch": "dense", "bias_rate": 0.5, "z_weight": 0.1})
    other = config.replace(moe=moe, mtp=MTPConfig(1, 0.9), precision="fp8", remat=True, dtype="bfloat16")
    assert there_and_back(other) == config


def test_unused_parts_do_not_matter() -> None:
    config = read("qwen3_moe").replace(ffn="glu", moe=MoEConfig(score="sigmoid"), mla=MLAConfig(kv_rank=9))
    assert config.to_hf()["mlp_only_layers"] == [0, 1, 2, 3]
    assert ModelConfig.from_hf(read("mixtral").replace(d_ff=48).to_hf()).d_ff == 48


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_transformers_survive_the_way_back(shared: Path, folder: str) -> None:
    config = ModelConfig.from_hf(json.loads((shared / "tiny_hf" / folder / "config.json").read_text()))
    assert there_and_back(config) == config


@st.composite
def files(draw: Any) -> dict[str, Any]:
    """A config.json of a family with experts, most keys drawn, some left to the defaults."""
    family = draw(st.sampled_from(["mixtral", *QWEN, *DEEPSEEK]))
    whole, flag, share = st.integers(1, 64), st.booleans(), st.floats(0.001, 4.0)
    groups = draw(st.sampled_from([1, 2, 4]))
    count = groups * draw(st.integers(4, 9))
    keys: dict[str, Any] = {
        "router_aux_loss_coef": st.sampled_from([0.0, 0.001, 0.02]),
        "norm_topk_prob": flag,
        "decoder_sparse_step": st.integers(1, 5),
        "mlp_only_layers": st.lists(st.integers(0, 3), unique=True),
        "moe_intermediate_size": whole,
        "shared_expert_intermediate_size": whole,
        "tie_word_embeddings": flag,
        "qkv_bias": flag,
        "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
        "num_key_value_heads": st.sampled_from([2, 8]),
    }
    if family in DEEPSEEK:
        keys = {
            "moe_intermediate_size": whole,
            "n_shared_experts": st.integers(0, 3),
            "q_lora_rank": st.none() | whole,
            "kv_lora_rank": whole,
            "qk_nope_head_dim": whole,
            "qk_rope_head_dim": st.sampled_from([8, 16]),
            "v_head_dim": whole,
            "routed_scaling_factor": share,
            "first_k_dense_replace": st.integers(0, 5),
            "aux_loss_alpha": st.none() | share,
            "seq_aux": flag,
            "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
        }
        keys |= {"topk_method": st.sampled_from(["greedy", "group_limited_greedy"])} if family == "deepseek_v2" else {}
        keys |= {"num_nextn_predict_layers": st.integers(0, 2)} if family == "deepseek_v3" else {}
    chosen = {key: draw(value) for key, value in keys.items() if draw(st.booleans())}
    number = "n_routed_experts" if family in DEEPSEEK else draw(st.sampled_from(["num_experts", "num_local_experts"]))
    fixed = {"model_type": family, **SIZES, number: count, "num_experts_per_tok": draw(st.integers(1, 4))}
    if family in DEEPSEEK:
        fixed |= {"n_group": groups, "topk_group": draw(st.integers(1, groups))}
    return fixed | chosen


@settings(max_examples=300, deadline=None)
@given(files())
def test_from_hf_undoes_to_hf(file: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(file)
    back = there_and_back(config)
    assert _computed(back) == _computed(config)
    assert back == config
