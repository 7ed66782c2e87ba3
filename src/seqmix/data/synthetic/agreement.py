"""Agreement at a distance: a subject's number decides its verb, `nearest` to `furthest` words later.

    the keys to the old cabinet near the doors are . the dog often today is . ...

Rows are sentences, and padding behind the last one that fits. A subject is the first noun of its sentence; between it
and the verb stand distractors: adverbs, and phrases with a noun of either number. The word before the verb asks for
it: "is" or "are". The distance is the verb's place less the subject's, so 1 has nothing between them. After the
subject-verb agreement of Linzen et al. (arXiv 1611.01368), made to order: distances are equally frequent, except that
the last sentence of a row is one that still fits, so a little shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets

NOUNS = ("dog", "cat", "key", "door", "letter", "river", "teacher", "friend", "book", "tree", "car", "song")
PREPOSITIONS = ("to", "near", "behind", "with")
ADVERBS = ("often", "never", "today", "now", "still", "perhaps")
SINGULAR, PLURAL = "is", "are"
_FRAME = 3  # the article before the subject, the verb and the full stop behind it, beside the distance
_PHRASE = 3  # preposition, article, noun


@dataclass(frozen=True, kw_only=True)
class Agreement(Task):
    """nearest, furthest: the distances from subject to verb. phrases: the share of distractors, where three words
    are left, that are phrases with a noun; the others are adverbs."""

    name: ClassVar[str] = "agreement"
    length: int = 128
    nearest: int = 1
    furthest: int = 64
    phrases: float = 0.7

    def check(self) -> None:
        if self.furthest < self.nearest:
            raise self.refuse("furthest", f"it must not be below nearest, {self.nearest}")
        if self.furthest + _FRAME > self.length:
            raise self.refuse(
                "furthest", f"its sentence does not fit into a length of {self.length}: give less, or more length"
            )
        if not 0 <= self.phrases <= 1:
            raise self.refuse("phrases", "it is a share and must lie between 0 and 1")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, ".", "the", SINGULAR, PLURAL, *PREPOSITIONS, *ADVERBS, *NOUNS, *(f"{noun}s" for noun in NOUNS)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        tokens = np.zeros((rows, self.length), np.int64)
        targets, distances = no_targets(tokens), np.zeros_like(tokens)
        for row in range(rows):
            at = 0
            while (longest := min(self.furthest, self.length - at - _FRAME)) >= self.nearest:
                distance = int(random.integers(self.nearest, self.furthest + 1))
                if distance > longest:
                    distance = int(random.integers(self.nearest, longest + 1))
                sentence = self._sentence(random, distance)
                asks, end = at + distance, at + len(sentence)
                tokens[row, at:end] = sentence
                targets[row, asks], distances[row, asks] = sentence[-2], distance
                at = end
        return Examples(tokens, targets, distances)

    def _sentence(self, random: np.random.Generator, distance: int) -> list[int]:
        ids = self._ids
        subject, is_plural = self._noun(random)
        words = [ids["the"], subject]
        left = distance - 1
        while left:
            if left >= _PHRASE and random.random() < self.phrases:
                words += [ids[PREPOSITIONS[random.integers(len(PREPOSITIONS))]], ids["the"], self._noun(random)[0]]
                left -= _PHRASE
            else:
                words.append(ids[ADVERBS[random.integers(len(ADVERBS))]])
                left -= 1
        return [*words, ids[PLURAL if is_plural else SINGULAR], ids["."]]

    def _noun(self, random: np.random.Generator) -> tuple[int, bool]:
        is_plural = bool(random.integers(2))
        noun = NOUNS[random.integers(len(NOUNS))]
        return self._ids[f"{noun}s" if is_plural else noun], is_plural
