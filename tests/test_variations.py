"""Variations of queries: what each changes, how much, and that it is the same bytes everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import variation_texts
from variation_texts import CODE, PARAPHRASES, QUERY
from wordnet_data import dictionary

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.robustness import variations
from reasonembed_mteb.robustness.variations import DRAWN, KINDS, SEEDS, Variation
from reasonembed_mteb.robustness.wordnet import WordNet
from reasonembed_mteb.robustness.words import protected_spans, split_words

SOURCE = WordNet(dictionary(), Path("tiny"))
# To be changed only together with `variations.VERSION`.
GOLDEN = "c35a3b885b581db3dabe44972139ac7dd5dd5241bf0f1e956b70b90fce4432a6"


def variation(kind: str, seed: int = 5, share: float = 0.1, *, official: bool = False) -> Variation:
    return Variation(kind, seed if kind in DRAWN else None, share, official, SOURCE, PARAPHRASES)


def pythons() -> list[str]:
    """Return a Python of each version that is here, this one first."""
    found = {sys.version_info[:2]: sys.executable}
    for minor in (11, 12, 13):
        kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
        named = str(kept[-1]) if kept else shutil.which(f"python3.{minor}")
        if named is not None:
            found.setdefault((3, minor), named)
    return list(found.values())


def test_the_bytes_are_what_they_were() -> None:
    assert [variation_texts.digest(line_break) for line_break in ("\n", "\r\n", "\r")] == [GOLDEN] * 3


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["0", "7", "random"])
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_the_bytes_are_the_same_on_every_python(minor: int, hash_seed: str) -> None:
    code = f"import sys; print(sys.version_info[:2] == (3, {minor}))"
    script = Path(variation_texts.__file__)
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(script.parents[1])}

    def said(*arguments: str) -> str:
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        return done.stdout.strip()

    python = next((one for one in pythons() if said(one, "-S", "-c", code) == "True"), None)
    if python is None:
        pytest.skip(f"no Python 3.{minor} is installed")
    assert said(python, "-S", str(script)).split() == [GOLDEN] * 3


def test_other_queries_and_earlier_draws_do_not_matter() -> None:
    one = variation("misspelling")
    alone = one.vary(QUERY)
    for text in variation_texts.TEXTS:
        one.vary(text)
    assert one.vary(QUERY) == alone
    assert len({variation("misspelling", seed).vary(QUERY).text for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 1.0])
def test_what_is_protected_stays_whole(kind: str, share: float) -> None:
    for text in (QUERY, CODE):
        varied = variation(kind, share=share).vary(text).text
        for start, end in protected_spans(text):
            assert text[start:end] in varied


@pytest.mark.parametrize(
    ("words", "share", "changed"), [(1, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (59, 0.1, 5), (10, 0.2, 2)]
)
def test_the_strength_is_a_share_of_the_words_at_least_one(words: int, share: float, changed: int) -> None:
    text = " ".join(f"plant{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(words))
    varied = variation("misspelling", share=share).vary(text)
    assert (varied.words, varied.changed) == (words, changed)
    assert sum(a != b for a, b in zip(text.split(), varied.text.split(), strict=False)) == changed


def test_each_of_the_six_edits_is_one_edit() -> None:
    """Every edit turns a word into another at a distance of one, swaps counted as one."""
    draw = variations._Draw("seed")
    for edit in variations.EDITS:
        for word in ("mouse", "Cities", "don't", "naïve", "aab"):
            for _ in range(50):
                new = edit(word, draw)
                assert new is None or (new != word and distance(word, new) == 1), (edit, word, new)
    assert variations._swap("aaa", draw) is None
    assert variations._press_beside("日本語", draw) is None


def distance(a: str, b: str) -> int:
    """Return the edit distance, with swaps of neighbours (optimal string alignment)."""
    rows = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = a[i - 1] == b[j - 1]
            best = min(rows[i - 1, j] + 1, rows[i, j - 1] + 1, rows[i - 1, j - 1] + (not same))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, rows[i - 2, j - 2] + 1)
            rows[i, j] = best
    return rows[len(a), len(b)]


def test_every_edit_is_drawn_about_as_often() -> None:
    kinds = Counter()
    for seed in range(600):
        new = variation("misspelling", seed).vary("photosynthesis").text
        kinds[len(new) - len("photosynthesis")] += 1
    # One of six deletes, one inserts, four keep the length.
    assert 60 < kinds[-1] < 140
    assert 60 < kinds[1] < 140
    assert 330 < kinds[0] < 470


def test_neighbours_on_the_keyboard_are_mutual() -> None:
    for key, beside in variations._NEIGHBOURS.items():
        assert all(key in variations._NEIGHBOURS[other] for other in beside), key
    assert variations._NEIGHBOURS["g"] == "bfhtvy"
    assert variations._NEIGHBOURS["q"] == "aw"


def test_stop_words_and_short_words_are_not_misspelled() -> None:
    text = "What is the ox of an elephant"
    varied = variation("misspelling", share=1.0).vary(text)
    assert (varied.eligible, varied.changed) == (1, 1)
    assert varied.text.startswith("What is the ox of an ")
    # The study compares stop words as they stand.
    assert variation("misspelling", share=1.0, official=True).vary(text).eligible == 2


def test_reordering_swaps_pairs() -> None:
    text = "one two, three four. five six seven eight nine ten"
    varied = variation("reordering").vary(text)
    assert varied.changed == 2
    words = split_words(varied.text).words
    assert sorted(words) == sorted(text.replace(",", "").replace(".", "").split())
    assert sum(a != b for a, b in zip(words, split_words(text).words, strict=True)) == 2
    # Punctuation stays where it was.
    assert [char for char in varied.text if char in ",."] == [",", "."]
    assert variation("reordering", share=0.4).vary(text).changed == 4


def test_shuffling_keeps_every_word() -> None:
    varied = variation("shuffle").vary(QUERY)
    assert Counter(split_words(varied.text).words) == Counter(split_words(QUERY).words)
    assert varied.changed > 0.8 * varied.words


def test_synonyms_are_restored_by_default_and_base_forms_for_the_study() -> None:
    assert variation("synonyms").vary("Mice").text in ("Pointers", "Rodents")
    assert variation("synonyms", official=True).vary("Mice").text in ("pointer", "rodent")
    varied = variation("synonyms", share=1.0).vary("the box of the happy zebra")
    assert varied.text == "the carton of the glad zebra"
    assert (varied.words, varied.eligible, varied.changed) == (6, 2, 2)


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("Why is the Sky blue? It is.", "sky blue? is."),
        ("the `A b` of\n\nthe  Sky", "`A b` sky"),
        ("So\n```\nThe code\n```\nThe end", "\n```\nThe code\n```\nend"),
        ("`A`the`B`", "`A``B`"),
    ],
)
def test_naturalising_lowers_and_drops_stop_words(text: str, natural: str) -> None:
    assert variation("naturalising").vary(text).text == natural.strip()
    plain = " ".join(w for w in text.lower().split() if w not in variations.STOP_WORDS)
    assert variation("naturalising", official=True).vary(text).text == plain


def test_an_emptied_query_stays_as_it_was_and_is_counted() -> None:
    for kind in ("naturalising", "keywords"):
        varied = variation(kind).vary("What is this?" if kind == "keywords" else "What is this")
        assert varied.kept == "emptied"
        assert varied.changed == 0
        assert varied.text.startswith("What is this")


def test_keywords_are_the_ten_words_that_come_most_often() -> None:
    text = "The cat saw a dog. A dog saw `x y` a bird, fish, ant, bee, cow, hen, pig, rat, Cat."
    # rat comes once, and last.
    assert variation("keywords").vary(text).text == "cat saw dog `x y` bird fish ant bee cow hen pig"


def test_paraphrases_are_taken_where_they_keep_what_is_protected() -> None:
    one = variation("paraphrase")
    assert one.vary("mouse").text == "a rodent"
    assert one.vary("mouse").changed == 1
    assert one.vary("city").kept == "no paraphrase"
    # The paraphrase of QUERY leaves its code out.
    assert one.vary(QUERY).kept == "protected text lost"
    assert one.vary(QUERY).text == QUERY
    assert variation("paraphrase", official=True).vary(QUERY).text == PARAPHRASES[QUERY]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"paraphrase"}))
@pytest.mark.parametrize(
    "text", ["", " ", "x", "the", "Почему небо голубое", "光", "```\nonly code here\n```", "\ud800"]
)
def test_nothing_to_change_leaves_a_text_as_it_is(kind: str, text: str) -> None:
    varied = variation(kind, share=1.0).vary(text)
    assert varied.text.strip() or not text.strip()
    if kind in ("misspelling", "synonyms"):
        assert (varied.text, varied.changed, varied.kept) == (text, 0, "nothing eligible")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"paraphrase"}))
def test_fifty_kilobytes_of_code_take_no_time(kind: str) -> None:
    code = "for item in items:\n    total_sum = total_sum + item.value  # the mouse runs\n" * 640
    started = time.process_time()
    whole, bare = variation(kind).vary(f"Why?\n```\n{code}```\n"), variation(kind).vary("mouse " * 8000)
    assert time.process_time() - started < 2
    assert code in whole.text
    assert bare.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "mispelling", "seed": 1}, "unknown variation 'mispelling'; did you mean 'misspelling'"),
        ({"kind": "misspelling"}, "needs a seed"),
        ({"kind": "keywords", "seed": 1}, "takes no seed"),
        ({"kind": "shuffle", "seed": 1, "share": 0.0}, "share is 0.0: give a share"),
        ({"kind": "shuffle", "seed": 1, "share": float("nan")}, "share is nan"),
        ({"kind": "synonyms", "seed": 1}, "synonyms need WordNet"),
        ({"kind": "paraphrase"}, "from a file or an endpoint"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ReasonEmbedError) as refused:
        Variation(**settings)  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert isinstance(refused.value, UnknownNameError) == said.startswith("unknown")


def test_names_and_causes_tell_variations_apart() -> None:
    assert variation("misspelling").label == "misspelling-5"
    assert variation("synonyms", share=0.2, official=True).label == "synonyms-0.2-official-5"
    # A share means nothing to the kinds that change whatever they can.
    assert variation("naturalising", share=0.2).label == "naturalising"
    assert variation("naturalising", official=True).label == "naturalising-official"
    other = Variation("synonyms", 5, synonyms=WordNet(dictionary(exceptions=False), Path("x")))
    assert other.causes != variation("synonyms").causes
