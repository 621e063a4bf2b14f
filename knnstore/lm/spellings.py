"""Special tokens spelled out in text, such as a literal ``<|endoftext|>``: tokens or ordinary text."""

import re
from itertools import pairwise
from typing import Any


class Spellings:
    """The spellings of a tokenizer's special tokens, and the tokenisation of text that contains them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {token.content for token in added if token.special}
        longest_first = sorted(filter(None, special), key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._special = set(tokenizer.convert_tokens_to_ids(longest_first)) - {tokenizer.unk_token_id}

    def count(self, text: str) -> int:
        """Return how many special tokens a text spells out."""
        return 0 if self._pattern is None else sum(1 for _ in self._pattern.finditer(text))

    def tokens(self, text: str) -> list[int]:
        """Return the special tokens that a text spells out."""
        spelled = set() if self._pattern is None else set(self._pattern.findall(text))
        return sorted(self._tokenizer.convert_tokens_to_ids(list(spelled)))

    def ids(self, text: str, *, special: bool, name: str = "text", add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text; spelled-out special tokens are ordinary text unless ``special``.

        ``name``: argument of the tokenizer, ``text`` or ``text_target``. Added tokens that aren't special stay tokens.
        """
        if special or self._pattern is None or not self._pattern.search(text):
            return self._ids(text, name, add_special_tokens=add_special_tokens)
        inner = self._ids(text, name, add_special_tokens=False, split_special_tokens=True)
        if not self._special.isdisjoint(inner):  # the vocabulary also contains the spelling as ordinary text
            cuts = [0, *(match.start() + 1 for match in self._pattern.finditer(text)), len(text)]
            pieces = [self._ids(text[begin:end], name, add_special_tokens=False) for begin, end in pairwise(cuts)]
            inner = [token for piece in pieces for token in piece]
        if not add_special_tokens:
            return inner
        before, after = self._around(name)
        return [*before, *inner, *after]

    def _around(self, name: str) -> tuple[list[int], list[int]]:
        """Return the special tokens that the tokenizer adds before and after a text."""
        whole, inner = (self._ids("a", name, add_special_tokens=around) for around in (True, False))
        begin = next(place for place in range(len(whole)) if whole[place : place + len(inner)] == inner)
        return whole[:begin], whole[begin + len(inner) :]

    def _ids(self, text: str, name: str, **given: bool) -> list[int]:
        ids: list[int] = self._tokenizer(**{name: text}, return_attention_mask=False, verbose=False, **given)[
            "input_ids"
        ]
        return ids
