"""What was heard beside what was said, word by word: the errors of one utterance, to look at."""

from __future__ import annotations

from itertools import pairwise

import jiwer

from voxtral_finetune.evaluation.normalise import joined, normalise, spaced, units

Mark = tuple[str, str, str]
"""(kind, said, heard): "=" both alike, "s" another word, "d" a word missing, "i" a word too many; "" where none is."""


def marks(reference: str, heard: str) -> list[Mark]:
    """The alignment that `wer.errors_of` counts, as stretches that are alike and single wrong words, in order.

    Words stand as they were written, where that can be told, else as they are counted: without case or punctuation.
    """
    truth, guess = (spaced(normalise(text)) for text in (reference, heard))
    said, found = _written(reference), _written(heard)
    made: list[Mark] = []
    for chunk in jiwer.process_words([truth], [guess]).alignments[0]:
        before = said[chunk.ref_start_idx : chunk.ref_end_idx]
        after = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            made.append(("=", joined(before), joined(after)))
        elif chunk.type == "substitute":
            made += [("s", *pair) for pair in zip(before, after, strict=True)]
        elif chunk.type == "delete":
            made += [("d", word, "") for word in before]
        else:
            made += [("i", "", word) for word in after]
    return made


def _written(text: str) -> list[str]:
    """The words of a text, one for each that is counted; with case and signs where each counted one is a written one.

    A sign that stands alone belongs to the word before it, the first to the one after it.
    """
    tokens = text.split()
    starts = [index for index, token in enumerate(tokens) if units(normalise(token))]
    bounds = [*([0, *starts[1:]] if starts else []), len(tokens)]
    written = [" ".join(tokens[start:end]) for start, end in pairwise(bounds)]
    counted = units(normalise(text))
    return written if [units(normalise(token)) for token in written] == [[word] for word in counted] else counted
