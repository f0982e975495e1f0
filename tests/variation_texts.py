"""Texts of every sort, varied in every way; run as a script it prints a hash of all that comes out.

Needs the standard library and the package's own modules alone, so that any Python can run it, with the
root of the repository on PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from wordnet_data import dictionary

from reasonembed_mteb.robustness.variations import DRAWN, KINDS, SEEDS, Variation, Varied
from reasonembed_mteb.robustness.wordnet import WordNet

QUERY = (
    "Why do the mice run out of big boxes so quickly?\n"
    "I was sitting next to my plants when a happy child stopped, see `np.where(x > 0)` and $x^2 + y$. The "
    "mice were running through the city, and children tried to take them; does a mouse love big cities?"
)
CODE = (
    "It fails:\n```\nfor i in range(10):\n    print(i)\n```\nHow do I stop the loop?\n\n    x = 1\n\nThanks"
)
TEXTS = (
    QUERY,
    CODE,
    "mouse",
    "the of and",
    "Mice!",
    "",
    " \n ",
    "Почему небо голубое? Светлый день",
    "为什么天空是蓝色的\uff1f",
    "لماذا السماء زرقاء",
    "why \U0001d465 \U00031350\U0001e030 sky \U0002ebf0 blue",
    "naïve café\u2019s déjà-vu ﬁne ﬀ İstanbul ΑΣ",
    "halves of a pair: \ud800 and the mouse",
    "भारत की राजधानी क्या है",
    "ภาษาไทยนี้ ดีมาก ครับ",
    "שָׁלוֹם עוֹלָם מה שלומך",
    "می\u200cخواهم بدانم چرا",  # noqa: RUF001
    "cafe\u0301 re\u0301sume\u0301 nai\u0308ve mouse",
    "tab\tand  many   blanks\u00a0here\u2028and a line",
)
PARAPHRASES = {QUERY: "What makes rodents leave?", "mouse": "a rodent"}


def variations() -> list[Variation]:
    """Return every kind, with every seed, both strengths, and as the study."""
    source = WordNet(dictionary(), Path("tiny"))
    return [
        Variation(kind, seed, share, official, source, PARAPHRASES)
        for kind in KINDS
        for seed in (SEEDS if kind in DRAWN else (None,))
        for share in (0.1, 0.5)
        for official in (False, True)
    ]


def outcomes(line_break: str = "\n") -> list[tuple[str, Varied]]:
    """Return everything, with its variation's name."""
    texts = [text.replace("\n", line_break) for text in TEXTS]
    return [(one.label, one.vary(text)) for one in variations() for text in texts]


def digest(line_break: str = "\n") -> str:
    """Return a hash of all of `outcomes`, and of what names and identifies each variation."""
    held = [[label, v.text, v.words, v.eligible, v.changed, v.kept] for label, v in outcomes(line_break)]
    causes = [one.causes for one in variations()]
    return hashlib.sha256(json.dumps([held, causes]).encode()).hexdigest()


if __name__ == "__main__":
    print(digest(), digest("\r\n"), digest("\r"))
