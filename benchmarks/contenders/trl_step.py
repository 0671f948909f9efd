"""TRL's GRPO step, for benchmarks/peers.py: its GRPOTrainer, stopped by a callback after every update."""

from __future__ import annotations

import tempfile
from typing import Any

import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from wire import Wire

STEPS = 10_000  # more than anybody asks for: an epoch never ends within a measurement


def model_of(case: dict[str, Any]) -> transformers.LlamaForCausalLM:
    """The model of the case, random, its outputs nearly uniform."""
    sizes = case["model"]
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["d_model"],
        intermediate_size=sizes["d_ff"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_heads"],
        max_position_embeddings=case["length"] + case["new"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=case["stop"] or None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.model.norm.weight.data.mul_(case["norm"])
    return model


def tokenizer_of(case: dict[str, Any]) -> transformers.PreTrainedTokenizerFast:
    """Every token's word is its number; without stop tokens the end is a number that the model has no output for."""
    size = case["model"]["vocab_size"]
    words = tokenizers.models.WordLevel({str(n): n for n in range(size + 1)}, unk_token="0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    end = str((case["stop"] or [size])[-1])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token=end)


def arguments_of(case: dict[str, Any], setting: dict[str, Any], folder: str) -> trl.GRPOConfig:
    """The case as arguments, and those that the setting changes (`options`; none: TRL's defaults)."""
    rows = setting["rows"]
    return trl.GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=len(case["prompts"]) * case["samples"] // rows,
        num_generations=case["samples"],
        max_completion_length=case["new"],
        max_steps=STEPS,
        learning_rate=case["lr"],
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **setting["options"],
    )


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of odd tokens."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


class Asked(transformers.TrainerCallback):
    """Answers after every update, and waits for the next question."""

    def __init__(self, wire: Wire) -> None:
        """The wire to answer on."""
        self._wire = wire

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The trainer is set up."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
        self._wire.ready(**versions, threads=torch.get_num_threads())
        self._wire.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One update is over."""
        self._wire.end()
        self._wire.begin()


def main() -> None:
    """Trains until nobody asks."""
    wire = Wire()
    case, setting = wire.case, wire.setting
    if setting["threads"]:
        torch.set_num_threads(setting["threads"])

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            wire.generated(found["completion_mask"].sum(1).tolist())
            return found

    prompts = [" ".join(map(str, prompt)) for prompt in case["prompts"]]
    with tempfile.TemporaryDirectory() as folder:
        Timed(
            model=model_of(case),
            reward_funcs=reward,
            args=arguments_of(case, setting, folder),
            train_dataset=Dataset.from_dict({"prompt": prompts * 200}),
            processing_class=tokenizer_of(case),
            callbacks=[Asked(wire)],
        ).train()


if __name__ == "__main__":
    main()
