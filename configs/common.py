"""What recipes share: the default of every setting, and the parser of `get_config`'s argument."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """Every setting there is, with its default; recipes change values and may not add keys.

    A pipeline names its `stages` in order and keeps in `stage.<name>` what that stage changes in the rest of the
    config, so a setting given at the top reaches every stage that does not set its own.
    """
    config = ConfigDict()
    config.name = "run"
    config.algorithm = "sft"  # a name in train/algorithms.py
    config.stages = ()
    config.stage = ConfigDict()
    config.seed = 0
    config.steps = 100
    config.init_from = ""  # a run directory, or a folder in the Hub's layout, to start from
    config.model = model()
    config.tokenizer = ConfigDict(dict(kind="", path="", vocab_size=0))  # nothing given: init_from's, or characters
    config.data = data()
    config.optimizer = optimizer()
    config.micro_batch = 0  # rows per gradient; 0: the whole batch at once
    config.max_bad_steps = 5  # non-finite updates in a row before the run stops
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, expert=1, tensor=1, context=1))  # -1: all devices; all 1: one
    config.sharding = ""  # other rules for logical axes than model/sharding.py has, such as embed=fsdp+data,mlp=none
    config.rl = rl()
    config.thoughts = thoughts()
    config.eval = ConfigDict(
        dict(
            every=0,  # steps between evaluations; 0: only at the end
            at_start=False,  # also before the first step
            split="test",
            examples=256,
            by="",  # a field of the examples; accuracy is also reported for each of its values
            max_new_tokens=64,
            temperature=0.0,
            samples=1,
            slots=0,
            loss_batches=0,  # batches of held-out demonstrations whose answer loss is measured
            depth=0,  # iterations of a recurrent core; 0: model.recurrent.mean
            depths=(),  # accuracy and answer loss are also reported at each of these
            exit="",  # a criterion of model/depth/exit.py ends a token's iterations early
            exit_threshold=0.0,  # 0: the criterion's own
            warm_start="",  # or raw, normed: a token starts from the state of the one before
            thoughts=placeholder(int),  # of algorithm coconut: so many, whatever the stage
            positions=(),  # rising; the answer loss is also reported from each of them to the next
        )
    )
    config.checkpoint = ConfigDict(dict(every=100, keep_last=2, keep_best=1))
    config.log = ConfigDict(dict(every=1, samples=8, tensorboard=False, wandb=False))
    config.launch = launch()
    return config


def launch() -> ConfigDict:
    """What a run takes of a cluster (launch/needs.py); a run may be resumed with other resources."""
    return ConfigDict(
        dict(
            cpus=1,  # of each node
            gpus=0,  # of each node
            nodes=1,  # with one process each
            tpu="",  # a slice, generation and topology: v5e:4x4
            memory_gb=0.0,  # of each node; 0: what the cluster gives
            hours=24.0,  # of a Slurm job, which then saves and queues again
            partition="",
            options=ConfigDict(),  # further flags of sbatch: account, constraint, ...
        )
    )


def model() -> ConfigDict:
    """Every field of ModelConfig. Zeros have no default: a new model needs them (`vocab_size`: the tokenizer's)."""
    rope = dict(
        kind="default",
        theta=10_000.0,
        factor=1.0,
        original_length=placeholder(int),
        partial=1.0,
        interleaved=False,
        attention_factor=placeholder(float),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        mscale=placeholder(float),
        mscale_all_dim=placeholder(float),
        short_factor=None,
        long_factor=None,
    )
    fields = dict(
        vocab_size=0,
        d_model=0,
        n_layers=0,
        n_heads=0,
        d_ff=0,
        n_kv_heads=placeholder(int),
        head_dim=placeholder(int),
        max_length=2048,
        mixer="gqa",
        ffn="glu",
        depth="stack",  # or recurrent
        norm="pre",
        norm_type="rmsnorm",
        norm_eps=1e-6,
        activation="silu",
        qkv_bias=False,
        qk_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        window=None,
        positions="rope",
        rope=rope,
        **parts(),
        tied=True,
        pairs=False,  # two characters joined by ~ are one position
        embed_scale=1.0,
        logit_scale=1.0,
        init="normal",  # or truncated, at three deviations
        init_std=0.02,
        dtype="auto",  # fp32 on CPU, bf16 on accelerators
        param_dtype="float32",
        precision="high",  # of the large matrix products: see model/precision.py
        remat="none",  # what the backward pass finds kept: full, dots, attention, offload
        layers="unrolled",  # or scanned: like layers are one loop, and compile as one
        attention="auto",  # einsum, blocked, fused
        family="sagax",
    )
    return ConfigDict(fields)


def parts() -> dict[str, dict[str, Any]]:
    """The settings of the slots, of multi-token prediction and of recurrent depth."""
    return dict(
        mla=dict(q_rank=0, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32),
        moe=dict(
            n_experts=8,
            top_k=2,
            d_expert=0,  # 0: d_ff
            n_shared=0,
            d_shared=0,  # 0: n_shared x d_expert
            shared_gate=False,
            score="softmax",  # or sigmoid
            router="top_k",  # or expert_choice
            normalize=True,
            scale=1.0,
            n_groups=1,
            top_groups=1,
            group_score="top2",  # or max
            balance="none",  # or sequence, batch, bias
            aux_weight=placeholder(float),  # nothing: what is usual for the balance chosen
            bias_rate=1e-3,
            z_weight=0.0,
            dispatch="auto",  # or dense, capacity, ragged, expert_parallel
            capacity_factor=0.0,  # 0: no token is ever dropped
            first_dense=0,
            every=1,
        ),
        peer=dict(
            n_experts=4096,
            heads=8,
            top_k=16,
            key_dim=0,  # 0: d_model
            query_norm="batch",  # or layer, none
            share_keys=True,
            gate="softmax",  # or relu, sigmoid
            separate=False,
            activation="gelu",
            chunk=0,
            momentum=0.9,
            banks=(),  # sizes of the banks added by grow_experts
        ),
        rnn=dict(
            expansion=1.0,
            conv=0,
            space="linear",  # or log
            learned_start=False,
            forget_bias=0.0,
            bias=False,
            coefficient_norm=True,
        ),
        mtp=dict(depth=placeholder(int), weight=0.3),  # nothing: as many modules as init_from has, else 0
        recurrent=recurrent(),
    )


def recurrent() -> dict[str, Any]:
    """The settings of recurrent depth."""
    return dict(
        prelude=1,
        core=1,
        coda=1,
        mean=8,
        draw="fixed",  # or poisson, lognormal
        sigma=0.5,
        per_sequence=False,
        grad_steps=8,
        injection="concat",  # or add, gate, diagonal, none
        start="random",  # or zero, embedding
        readout="norm",  # or none
        kv_slots=0,  # 0: keys of every iteration
        exit_gate=False,  # learn when to stop: every iteration is trained, weighed by a gate
        exit_entropy=0.05,
    )


def data() -> ConfigDict:
    """What to learn from: a task, how its prompts are rendered, and how rows are made."""
    return ConfigDict(
        dict(
            task="addition",
            options=ConfigDict(),  # the task's own arguments
            path="",  # a folder of real data, for tasks that read one
            split="train",  # of the task; or a JSON-lines file of its examples, such as rl.select writes
            template="none",  # or a chat template: see data/chat.py
            system="",
            batch_size=64,
            length=64,
            pack=False,
            too_long="error",  # or drop, truncate
            loss_on="answer",  # or all: the prompt is learnt too
            prefetch=2,
            verify_workers=2,  # processes that judge answers, for tasks whose verifier must be killable
            verify_seconds=placeholder(float),  # for one answer; nothing: what the task asks for
            stop=(),  # text that ends an answer, besides the end token
        )
    )


def optimizer() -> ConfigDict:
    """AdamW with a constant rate; see train/optimizer.py for the others."""
    return ConfigDict(
        dict(
            name="adamw",
            lr=1e-3,
            schedule="constant",
            warmup_steps=0,
            decay_fraction=0.2,  # of the run, for wsd
            final_fraction=0.0,  # of the peak rate
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,
            no_decay=("vector", "embedding"),
            clip_norm=1.0,
            ema=0.0,  # decay of the averaged parameters; 0: none
            muon_beta=0.95,
            muon_steps=5,
            muon_rms=0.2,
            memory="device",  # or host: moments lie in host memory between updates
            tables="rows",  # PEER's experts: only the rows a batch touches; or dense, like the rest
        )
    )


def rl() -> ConfigDict:
    """GRPO (2402.03300): 32 prompts x 8 samples, clip .2/.28, group-normalised rewards, no KL."""
    return ConfigDict(
        dict(
            prompts=32,
            samples=8,
            max_new_tokens=64,
            max_prompt_length=0,  # 0: what max_new_tokens leaves of the model's context
            temperature=1.0,
            depth="mean",  # of a recurrent core: or drawn, for every sample by itself
            max_depth=0,  # of those drawn; 0: twice the mean
            depth_cost=0.0,  # taken off the reward per iteration, on average over a sample's tokens
            token_cost=0.0,  # taken off the reward per token
            # Weights by name; nothing: not computed, 0: only measured. A recipe may put a dict of weight, kind and
            # options in the place of a weight, and further names: docs/rewards.md.
            rewards=dict(
                accuracy=1.0,
                format=placeholder(float),
                tag_count=placeholder(float),
                language=placeholder(float),
                kimi_length=placeholder(float),
                cosine_length=placeholder(float),
                repetition=placeholder(float),
            ),
            compose="sum",  # or gated: the rest counts only where `gate` is 1
            gate="accuracy",
            slots=0,  # rows decoded at once; 0: all samples
            baseline="group",
            scale="group",
            ddof=1,
            singleton="",  # what one sample per prompt earns: raw, zero; nothing: that is refused
            minibatches=1,  # updates a rollout's rows are dealt into
            epochs=1,  # times they are learnt from; a step is one update
            overlap=False,  # sample the next rollout while this one is learnt from, one rollout behind
            replay_routes=False,  # of a mixture: the update sends tokens to the experts that the sampler took
            share_prompts=True,  # an update reads a prompt once, where the model's cache has a gradient
            widths=4,  # of micro-batches, at most: an update leaves empty columns out; each is a program to compile
            carry=0,  # groups in flight beyond `prompts`: a rollout ends without them, and they go on in the next
            refill=0,  # further rounds of prompts at most, to replace groups of equal rewards
            epsilon=1e-6,
            estimator="group",  # or reinforce_pp, reinforce_pp_baseline: advantages of tokens, whitened
            gamma=1.0,  # discount a token, of reinforce_pp
            clip_low=0.2,
            clip_high=0.28,
            level="token",
            aggregate="token_mean",
            surrogate="clip",  # or cispo, sapo, gmpo
            ratio_cap=placeholder(float),  # an absolute upper bound on the ratio, in the place of 1 + clip_high
            dual_clip=placeholder(float),
            delta=placeholder(float),  # the unclipped ratio is at most this
            importance_level="token",  # or sequence: what weights for a sampler unlike the trainer look at
            importance_cap=placeholder(float),  # they are at most this (TIS: 2); nothing: no such weights
            importance_low=0.0,
            importance_high=placeholder(float),  # outside low .. high a token counts 0 (IcePop: .5 .. 5)
            off_policy_threshold=placeholder(float),  # nats a token; rows with A < 0 beyond it are left out
            empty_rows="skip",  # or count
            beta=0.0,  # weight of the KL to the model the run starts from
            track_kl=False,  # measure that KL though beta is 0; costs one forward pass a step
            kl_in="loss",  # or reward: beta x KL is taken off each token's reward
            kl_kind="k3",  # of the loss
            unbiased_kl=False,  # times the ratio
            sync_every=0,  # steps after which the reference follows the model; 0: it stays as it was
            sync_alpha=1.0,  # how far: 1 is a copy
            policy_coef=1.0,  # weight of the policy gradient; 0: the KL and the entropy bonus alone
            entropy_coef=0.0,
            entropy_target=0.0,  # nats a token; the bonus' weight then moves by entropy_step, up to entropy_max
            entropy_step=0.005,
            entropy_max=1.0,
            entropy_share=1.0,  # learn from this share of the tokens, those of the highest entropy
        )
    )


def thoughts() -> ConfigDict:
    """Continuous thoughts (2412.06769) and their baselines: see `Curriculum` in data/thoughts/curriculum.py."""
    return ConfigDict(
        dict(
            method="coconut",  # or cot, no_cot, icot, pause, no_curriculum, no_thought, pause_as_thought
            thoughts_per_step=1,
            max_stage=3,
            stage_steps=1000,  # training steps of a stage
            first_stage_steps=placeholder(int),  # of stage 0; nothing: stage_steps
            uniform_prob=0.0,
            markers=True,  # tokens of their own before and after the thoughts
            pad_to_max=True,
            removed_per_stage=8,  # tokens, by icot
            smoothing=4.0,
            keep_position=False,
            reset="stage",  # the optimizer forgets at each: or epoch, never
            objective="coconut",  # or codi, with method no_curriculum
            gamma=1.0,  # weight of codi's distance
            teacher_weight=1.0,  # of the loss of codi's teacher
            first=0,  # column of the first thought, behind the longest question and its marker; 0: what the data need
            length=0,  # of rows; 0: what the data need
        )
    )


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Reads `get_config`'s argument, "key=value,flag": values take the type of their default; unknown keys raise.

    A key without a value is True. `--config=configs/x.py:small,steps=10` passes "small,steps=10".
    """
    values = ConfigDict(dict(defaults))
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown config argument {key!r}; this recipe takes {', '.join(defaults) or 'none'}")
        values[key] = _as_type_of(key, defaults[key], text or "true")
    return values


def _as_type_of(key: str, default: Any, text: str) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false", "True", "False"):
            raise ValueError(f"{key} is true or false, found {text!r}")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError as error:
        raise ValueError(f"{key} is of type {type(default).__name__}, found {text!r}") from error
