"""What the model sees, and what is right: tokenizers, tasks, verifiers and the input pipeline."""

from data.chat import assistant_tokens, prompt_tokens, render_messages, render_prompt
from data.sources.text import fixed_examples, prompt_source, text_source
from data.tasks import Task, Verdict, build_task
from data.tokenizers.base import Tokenizer, find_stop
from data.tokenizers.build import build_tokenizer, check_vocab, load_tokenizer

__all__ = [
    "Task",
    "Tokenizer",
    "Verdict",
    "assistant_tokens",
    "build_task",
    "build_tokenizer",
    "check_vocab",
    "find_stop",
    "fixed_examples",
    "load_tokenizer",
    "prompt_source",
    "prompt_tokens",
    "render_messages",
    "render_prompt",
    "text_source",
]
