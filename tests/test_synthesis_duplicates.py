"""Near-duplicates and leaks."""

from __future__ import annotations

from remixer_script import document

from reasonembed_mteb.synthesis.duplicates import Leaks, NearDuplicates, plain_hash, words

TEXT = document(1, 120)


def changed(text: str, every: int) -> str:
    """Replace every so-manieth word."""
    return " ".join("other" if n % every == every - 1 else word for n, word in enumerate(text.split()))


def test_signs_case_and_spaces_do_not_count() -> None:
    assert plain_hash("Why, oh why?") == plain_hash("why  oh\nWHY")
    assert plain_hash("why oh") != plain_hash("why ho")
    assert words("没有空格的很长的一句中文没有空格") == list("没有空格的很长的一句中文没有空格")


def test_near_duplicates_are_found_and_others_are_not() -> None:
    seen = NearDuplicates(0.8)
    assert seen.add("first", TEXT) is None
    assert seen.add("again", TEXT.upper() + "!") == "first"
    # One word in 60 breaks 6 of about 120 shingles.
    assert seen.add("near", changed(TEXT, 60)) == "first"
    assert seen.add("far", changed(TEXT, 5)) is None
    assert seen.add("other", document(2, 120)) is None
    assert seen.find(document(2, 120)) == "other"
    assert seen.find("") is None


def test_what_was_found_to_be_a_duplicate_is_not_kept() -> None:
    # Otherwise a chain of small changes would swallow everything.
    seen = NearDuplicates(0.9)
    seen.add("first", TEXT)
    assert seen.add("near", changed(TEXT, 60)) == "first"
    assert seen.find(changed(TEXT, 30)) is None


def test_thresholds() -> None:
    strict, loose = NearDuplicates(1.0), NearDuplicates(0.2)
    for seen in (strict, loose):
        seen.add("first", TEXT)
    assert strict.find(changed(TEXT, 60)) is None
    assert strict.find(TEXT + "!") == "first"
    assert loose.find(changed(TEXT, 8)) == "first"


def test_leaks() -> None:
    leaks = Leaks([TEXT, "What is light?", ""], 0.7, 13)
    assert leaks.has(TEXT)
    assert leaks.has(changed(TEXT, 60))
    # Thirteen words in a row are enough, twelve are not.
    run = TEXT.split()
    assert leaks.has(document(5, 80) + " " + " ".join(run[20:33]) + " " + document(6, 80))
    assert not leaks.has(document(5, 80) + " " + " ".join(run[20:32]) + " " + document(6, 80))
    assert leaks.has("what is LIGHT")
    # A short benchmark query counts only as a whole.
    assert not leaks.has("What is light made of, and why does it bend where water begins to be deep?")
    assert not leaks.has(document(7, 100))
    assert not leaks.has("")
