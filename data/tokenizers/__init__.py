"""Text to token ids and back: one file per kind of tokenizer."""
