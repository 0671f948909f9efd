"""Random languages over one alphabet, of known entropy: text to model without any file, in several domains."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from math import log
from string import ascii_lowercase, ascii_uppercase

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, stable_hash


@dataclass(frozen=True)
class Languages:
    """Texts in one of `domains` languages, a Markov chain of `order` each: prompt `C` (its name), text `dacbd...`.

    After every context of `order` symbols the same probabilities, Zipf's 1 / rank, belong to `branching` of the
    `symbols` letters, drawn anew for each context of each language. So every symbol carries exactly `entropy` nats, no
    language is easier than another, and there are domains x symbols^order contexts to remember. Texts have `length`
    symbols and start as if only `a` had gone before. The languages depend on `seed` alone; texts of different splits
    are drawn apart. `train_size`, `valid_size`, `test_size`: lengths of the splits.
    """

    domains: int = 8
    symbols: int = 16
    order: int = 2
    branching: int = 4
    length: int = 64
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        limits = {"domains": (1, 26), "symbols": (2, 26), "order": (1, 3), "branching": (1, self.symbols)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {getattr(self, name)}")
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")

    @property
    def alphabet(self) -> str:
        """The letters of the texts, then the names of the languages."""
        return ascii_lowercase[: self.symbols] + ascii_uppercase[: self.domains]

    @cached_property
    def probabilities(self) -> tuple[float, ...]:
        """Zipf's law over the successors of a context, the likeliest first, [branching]."""
        weights = [1 / rank for rank in range(1, self.branching + 1)]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def entropy(self) -> float:
        """Nats per symbol."""
        return -sum(p * log(p) for p in self.probabilities)

    def floor(self, length: int) -> float:
        """The least mean loss, in nats, over what is predicted of an example in a row of `length` tokens, length > 1.

        The name of the language comes first and is never predicted; the end token, where the row has room for it, is
        certain after `self.length` symbols.
        """
        symbols = min(self.length, length - 1)
        return self.entropy * symbols / min(self.length + 1, length - 1)

    def successors(self, domain: int) -> list[list[int]]:
        """Which symbols follow each context of a language, the likeliest first, [symbols^order][branching]."""
        return self._tables[domain]

    def examples(self, split: str) -> Sequence[Example]:
        """Returns texts `{"domain", "text"}`, made on demand, with the languages in turn."""
        check_split("languages", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the name of the language."""
        return ascii_uppercase[example["domain"]]

    def target(self, example: Example) -> str:
        """Returns the text."""
        return example["text"]

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is as long as it should be and possible in its language."""
        if len(text) != self.length:
            return Verdict(0.0, None, f"{len(text)} symbols instead of {self.length}")
        table, context = self._tables[example["domain"]], 0
        for place, symbol in enumerate(map(ascii_lowercase.find, text)):
            if symbol not in table[context]:
                return Verdict(0.0, text, f"symbol {place + 1} cannot stand there")
            context = self._after(context, symbol)
        return Verdict(1.0, text, "possible in this language")

    @cached_property
    def _tables(self) -> list[list[list[int]]]:
        letters, contexts = range(self.symbols), range(self.symbols**self.order)
        draws = [random.Random(stable_hash("languages", self.seed, domain)) for domain in range(self.domains)]
        return [[draw.sample(letters, self.branching) for _ in contexts] for draw in draws]

    @cached_property
    def _cumulative(self) -> list[float]:
        return list(accumulate(self.probabilities))

    def _after(self, context: int, symbol: int) -> int:
        """The number of the context that ends in `symbol`: its symbols are digits, the last one the least."""
        return (context * self.symbols + symbol) % self.symbols**self.order

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("languages", self.seed, split, index))
        domain, context, text = index % self.domains, 0, []
        table = self._tables[domain]
        for rank in draw.choices(range(self.branching), cum_weights=self._cumulative, k=self.length):
            symbol = table[context][rank]
            text.append(ascii_lowercase[symbol])
            context = self._after(context, symbol)
        return {"domain": domain, "text": "".join(text)}
