"""Tokenises a corpus once, so that training reads tokens: python -m data.prepare corpus.jsonl --tokenizer=... --out=...

    python -m data.prepare /data/books --tokenizer=/models/deepseek_v3 --out=/data/books_tokens

Written are array_record files with the ids of one document each, `lengths.npy` with the tokens and bytes of every
document, and `prepared.json`: which tokenizer, how many documents, tokens and bytes. `--tokenizer` is a folder or
`byte`. Documents are read as `corpus.sources.<name>` reads them (docs/pretraining.md).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.corpus import fingerprint
from data.sources.documents import PREPARED, Documents, open_documents
from data.tokenizers.base import Batching, Tokenizer
from data.tokenizers.build import build_tokenizer, load_tokenizer
from store.command import exit_code
from store.records import write_json

CHUNK = 64  # documents that a worker takes at a time
# One worker a core, each with one thread of its own, is faster than threads of the library.
ALONE = {"TOKENIZERS_PARALLELISM": "false"}


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m data.prepare`."""
    flags = argparse.ArgumentParser("python -m data.prepare", description="Tokenises a corpus once.")
    flags.add_argument("corpus", help="a file or folder of documents")
    flags.add_argument("--tokenizer", required=True, help="a folder with a tokenizer, or byte")
    flags.add_argument("--out", required=True, help="a new folder")
    flags.add_argument("--field", default="text", help="of a JSON line or record, that holds its document")
    flags.add_argument("--shard_mb", type=int, default=256, help="size of a file of tokens")
    flags.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return flags


def prepare(
    documents: Documents, tokenizer: str, out: Path, *, shard_mb: int = 256, workers: int = 1
) -> dict[str, Any]:
    """Writes the tokens of all documents, in order, and returns the manifest.

    Raises ValueError for a folder that holds something; what an interrupted call has left is no corpus, for the
    manifest comes last.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something already: give a new folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    made, started = open_tokenizer(tokenizer), time.perf_counter()
    dtype = "uint16" if made.vocab_size <= 1 << 16 else "uint32"
    lengths, names, writer, held = [], list[str](), None, 0
    for record, size in encoded(documents, tokenizer, dtype, workers):
        if writer is None or held >= shard_mb << 20:
            if writer is not None:
                writer.close()
            names.append(f"tokens-{len(names):05d}.array_record")
            writer, held = ArrayRecordWriter(str(out / names[-1]), "group_size:1"), 0
        writer.write(record)
        held += len(record)
        lengths.append((len(record) // np.dtype(dtype).itemsize, size))
    assert writer is not None
    writer.close()
    table = np.array(lengths, np.int64)
    np.save(out / "lengths.npy", table)
    seconds = time.perf_counter() - started
    manifest: dict[str, Any] = {
        "tokenizer": tokenizer,
        "fingerprint": fingerprint(made),
        "vocab_size": made.vocab_size,
        "dtype": dtype,
        "documents": len(table),
        "tokens": int(table[:, 0].sum()),
        "bytes": int(table[:, 1].sum()),
        "shards": names,
    }
    write_json(out / PREPARED, manifest)
    return manifest | {"seconds": round(seconds, 2), "mb_per_second": round(manifest["bytes"] / seconds / 1e6, 2)}


def encoded(documents: Documents, tokenizer: str, dtype: str, workers: int) -> Iterator[tuple[bytes, int]]:
    """The ids of every document as bytes of `dtype`, in order, and how many bytes its text has."""
    count = len(documents)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    work = partial(_encode, documents, tokenizer, dtype)
    if workers <= 1 or len(chunks) == 1:
        yield from itertools.chain.from_iterable(map(work, chunks))
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(chunks))) as pool:
        yield from itertools.chain.from_iterable(pool.imap(work, chunks))


_OPENED: dict[str, Tokenizer] = {}  # of a worker process


def _encode(documents: Documents, tokenizer: str, dtype: str, numbers: range) -> list[tuple[bytes, int]]:
    if tokenizer not in _OPENED:
        _OPENED[tokenizer] = open_tokenizer(tokenizer)
    made, found = _OPENED[tokenizer], []
    texts = [documents.text(number) for number in numbers]
    batch = made.encode_batch(texts) if isinstance(made, Batching) else map(made.encode, texts)
    for ids, text in zip(batch, texts, strict=True):
        # As bytes they come from a worker faster than as a list.
        record = np.asarray(ids, dtype).tobytes()
        found.append((record, len(text.encode())))
    return found


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder, or of bytes."""
    return build_tokenizer({"kind": "byte"}) if name == "byte" else load_tokenizer(name)


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def act() -> None:
        os.environ.update(ALONE)
        documents = open_documents(options.corpus, options.field)
        out, size = Path(options.out), options.shard_mb
        told = prepare(documents, options.tokenizer, out, shard_mb=size, workers=options.workers)
        print(
            f"{told['documents']} documents, {told['bytes']} bytes, {told['tokens']} tokens of {told['tokenizer']} in"
            f" {len(told['shards'])} files of {out}: {told['seconds']} s, {told['mb_per_second']} MB/s"
        )

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
