"""Queries with their positives, from any source, and the corpus that negatives are mined in."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, first_names, unknown_name
from reasonembed_mteb.files import content_hash
from reasonembed_mteb.retrieval import beir
from reasonembed_mteb.retrieval.labels import apply_rules, bright_examples, named_documents
from reasonembed_mteb.retrieval.layouts import load_split
from reasonembed_mteb.retrieval.rows import load_rows, row_of_subset
from reasonembed_mteb.retrieval.sources import data_files, data_revision, read_files
from reasonembed_mteb.training import rows as row_names
from reasonembed_mteb.training.data import ReadOptions, read_file, source_files
from reasonembed_mteb.training.rows import BadRowError, parse_kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datasets import Dataset

    from reasonembed_mteb.training.rows import Kept

logger = logging.getLogger(__name__)

# Documents whose texts are in memory at a time.
_BATCH = 10_000
_EXCLUDED = "excluded_ids"
_TAKEN = {*row_names.QUERY, *row_names.POSITIVES, *row_names.NEGATIVES, *row_names.INSTRUCTION}


@dataclass
class Pairs:
    """Rows that negatives are wanted for.

    Attributes:
        rows: What each row's line begins with: ``query``, ``pos``, ``neg`` (its own, or none), and whatever
            else its source says of it.
        positives: The place in the corpus of each text in ``pos``.
        excluded: What else cannot be a negative of it, likewise: exclusions and its own negatives.
        corpus: Data set with columns ``id`` and ``text``; no text stands there twice.
        source: What was read, for the record.
        named: Whether the documents' ids are the source's own.
        counts: What was left out, by reason.
    """

    rows: list[dict[str, Any]]
    positives: list[list[int]]
    excluded: list[list[int]]
    corpus: Dataset
    source: dict[str, Any]
    named: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)


def text_key(text: str) -> str:
    """Return what tells texts apart: space between words does not.

    Args:
        text: A query or a document.
    """
    return " ".join(text.split())


def read_pairs(
    source: str | Path,
    *,
    corpus: str | Path | None = None,
    subset: str | None = None,
    split: str = "train",
    instruction: str | None = None,
) -> Pairs:
    """Read queries with their positives.

    Args:
        source: JSON Lines or Parquet in any of the shapes that `reasonembed train` reads, a folder of such
            files, a BEIR folder, a folder in BRIGHT's layout, or a data set's name on the hub.
        corpus: Documents to mine in: JSON Lines with ``_id`` and ``text``, a BEIR folder, or a folder in
            BRIGHT's layout; None for the source's own, which for pairs are all their positives.
        subset: Subset of BRIGHT's layout, or config on the hub.
        split: Of a BEIR folder or on the hub.
        instruction: For rows that have none.

    Returns:
        The rows. Positives that are missing from the corpus are added to it.

    Raises:
        DataError: If something is missing or broken; the message names file and line.
    """
    folder = Path(source).expanduser()
    if (row := _table_row(str(source), subset)) is not None:
        pairs = _judged(load_split(row), row.instruction, {"name": row.name, "revision": data_revision(row)})
    elif (folder / beir.CORPUS).is_file() or beir.find_file(folder / beir.CORPUS) is not None:
        pairs = _beir(folder, split)
    elif _is_bright(folder):
        pairs = _bright(folder, subset)
    else:
        rows, read = _raw_rows(source, subset, split)
        return _finish(_pairs_of_rows(rows, _documents(corpus, subset), read, instruction))
    if corpus is not None:
        msg = f"{source} has a corpus of its own: leave --corpus out, or give the pairs as JSON Lines"
        raise DataError(msg)
    for one in pairs.rows:
        if instruction is not None:
            one.setdefault("prompt", instruction)
    return _finish(pairs)


def _finish(pairs: Pairs) -> Pairs:
    for reason, count in pairs.counts.items():
        if count:
            logger.warning("%s: %s", f"{count:,}", reason)
    if not pairs.rows:
        msg = f"no pair of a query and a positive was read ({pairs.counts or 'nothing was there'})"
        raise DataError(msg)
    return pairs


# Sources with ids and labels.


def _table_row(source: str, subset: str | None) -> Any:  # noqa: ANN401 - TaskRow or None
    """Return the row of a task table that a hub data set and a subset name."""
    if Path(source).expanduser().exists():
        return None
    named = [row for row in load_rows() if row.name == source]
    if named:
        return named[0]
    # Rewritten queries may come from another data set than the documents, in which the original ones lie too.
    paths = {row.path for row in load_rows() if source in (row.path, row.queries_path)}
    rows = [row for row in load_rows() if row.path in paths and not row.rewritten]
    found = [row for row in rows if row.subset == subset]
    if rows and not found:
        subsets = [row.subset for row in rows]
        if subset is not None:
            raise unknown_name("subset", subset, subsets)
        known = first_names(dict.fromkeys(subsets), 20)
        msg = f"{source} has several subsets; choose one with --subset: {known}"
        raise DataError(msg)
    return found[0] if found else None


def _beir(folder: Path, split: str) -> Pairs:
    splits = beir.label_files(folder)
    if split not in splits:
        there = f"it has {', '.join(splits)}: choose one with --split" if splits else "it has none at all"
        msg = f"{folder} has no labels of the split {split!r}; {there}"
        raise DataError(msg)
    source = {"folder": folder.name, "split": split, "revision": beir.folder_revision(folder, split)}
    return _judged(beir.read_folder(folder, split), None, source)


def _is_bright(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("documents", "examples"))


def _bright(folder: Path, subset: str | None) -> Pairs:
    if subset is None:
        msg = f"{folder} has BRIGHT's layout, with several subsets: choose one with --subset"
        raise DataError(msg)
    corpus = _bright_documents(folder, subset)
    files = data_files(folder, "examples", subset)
    examples = read_files(files, ("id", "query", "gold_ids", _EXCLUDED))
    found = bright_examples(examples)
    queries = examples.select_columns(["id", "query"]).rename_column("query", "text")
    known = set(corpus["id"][:])
    labels, excluded = apply_rules(found.labels, found.excluded, queries["id"][:], known, subset)
    data = {"corpus": corpus, "queries": queries, "relevant_docs": labels, "excluded_ids": excluded}
    row = row_of_subset(subset)
    hashed = content_hash([*files, *data_files(folder, "documents", subset)])
    source = {"folder": folder.name, "subset": subset, "revision": hashed}
    return _judged(data, None if row is None else row.instruction, source)


def _bright_documents(folder: Path, subset: str) -> Dataset:
    data = read_files(data_files(folder, "documents", subset), ("id", "content"))
    renamed: Dataset = data.rename_column("content", "text")
    return renamed


def _judged(data: Mapping[str, Any], instruction: str | None, source: dict[str, Any]) -> Pairs:
    """Take a retrieval task's data as pairs; its labels are kept."""
    corpus = _Corpus(_titled(data["corpus"]))
    pairs = Pairs([], [], [], corpus.data, source, named=True, counts=Counter())
    labels, excluded = data["relevant_docs"], data.get("excluded_ids") or {}
    for name, text in zip(data["queries"]["id"][:], data["queries"]["text"][:], strict=True):
        good = corpus.distinct({one: label for one, label in labels.get(name, {}).items() if label > 0})
        if not good or not text.strip():
            pairs.counts["queries without a text or a positive in the corpus are left out"] += 1
            continue
        row = {"query_id": name, **({"prompt": instruction} if instruction else {}), "query": text}
        row |= {"pos": list(good), "pos_ids": list(good), "pos_labels": list(good.values()), "neg": []}
        pairs.rows.append(row)
        pairs.positives.append(corpus.places(good))
        pairs.excluded.append(corpus.places(excluded.get(name, ())))
    if pairs.rows:
        _fill_in_texts(pairs)
    return pairs


def _fill_in_texts(pairs: Pairs) -> None:
    # All at once: a data set takes longer to be asked than to answer.
    texts = iter(pairs.corpus[[place for places in pairs.positives for place in places]]["text"])
    for row, places in zip(pairs.rows, pairs.positives, strict=True):
        row["pos"] = list(islice(texts, len(places)))


# Sources of rows: texts without ids.


def _raw_rows(
    source: str | Path, subset: str | None, split: str
) -> tuple[Iterator[tuple[str, Any]], dict[str, Any]]:
    """Return raw rows with their places, and what is read."""
    folder = Path(source).expanduser()
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        saved = load_from_disk(str(folder))
        if isinstance(saved, dict) and split not in saved:
            msg = f"{folder} has no split {split!r}; it has {', '.join(saved)}: choose one with --split"
            raise DataError(msg)
        data = saved[split] if isinstance(saved, dict) else saved
        files = [file for file in folder.rglob("*") if file.is_file()]
        return _numbered(data, str(source)), {"folder": folder.name, "revision": content_hash(files)}
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        files = source_files(folder)
        options, counts = ReadOptions(), Counter[str]()
        rows = (row for file in files for row in read_file(file, options, counts))
        return rows, {"files": [file.name for file in files], "revision": content_hash(files)}
    return _from_hub(str(source), subset, split)


def _from_hub(name: str, subset: str | None, split: str) -> tuple[Iterator[tuple[str, Any]], dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = str(error).strip().splitlines()[0]
        msg = f"cannot load {name} ({cause}): give a file, a folder, or a hub name, and go online"
        raise DataError(msg) from error
    # The library's own identity of what it loaded.
    read = {"dataset": name, "subset": subset, "split": split, "revision": _checksums(data)}
    return _numbered(data, name), read


def _checksums(data: Dataset) -> Any:  # noqa: ANN401 - what JSON holds
    info = data.info
    return json.loads(json.dumps([str(info.version), sorted(info.download_checksums or {})], default=str))


def _numbered(data: Dataset, name: str) -> Iterator[tuple[str, Any]]:
    return ((f"{name}, row {number}", row) for number, row in enumerate(data, 1))


def _pairs_of_rows(
    rows: Iterable[tuple[str, Any]],
    documents: tuple[Dataset, dict[str, Any]] | None,
    source: dict[str, Any],
    instruction: str | None,
) -> Pairs:
    counts: Counter[str] = Counter()
    corpus = _Corpus(documents[0] if documents is not None else None)
    if documents is not None:
        source = source | {"corpus": documents[1]}
    pairs = Pairs([], [], [], corpus.data, source, named=documents is not None, counts=counts)
    for place, raw in rows:
        try:
            parsed = parse_kept(raw, counts)
            out = _excluded(raw)
        except BadRowError as error:
            msg = f"{place}: {error}; mend the row"
            raise DataError(msg) from error
        if parsed is None:
            continue
        row, kept = parsed
        own = row.instruction or instruction
        line: dict[str, Any] = {"prompt": own} if own else {}
        line |= {"query": row.query, **_others(raw, kept), "pos": row.positives, "neg": row.negatives}
        pairs.rows.append(line)
        pairs.positives.append([corpus.add(text) for text in row.positives])
        pairs.excluded.append(corpus.places(out))
    # Only now: a row's own negative may be a later row's positive.
    for line, excluded in zip(pairs.rows, pairs.excluded, strict=True):
        excluded += [known for text in line["neg"] if (known := corpus.find(text)) is not None]
    pairs.corpus = corpus.data
    return pairs


def _excluded(raw: Mapping[str, Any]) -> list[str]:
    """Return the ids of the documents that a row excludes."""
    names = raw.get(_EXCLUDED)
    # A single id would be taken letter by letter.
    if names is not None and not (
        isinstance(names, (list, tuple)) and all(isinstance(one, (str, int, type(None))) for one in names)
    ):
        msg = f"{_EXCLUDED} must be a list of ids, not {names!r:.40}"
        raise BadRowError(msg)
    return named_documents(names)


def _others(raw: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """Return what else a row holds, such as labels, as JSON can hold it; of texts those of the kept ones."""
    others = {
        key: _of_kept(key, value, kept)
        for key, value in raw.items()
        if key not in _TAKEN and value is not None and not str(key).startswith("negative_")
    }
    plain: dict[str, Any] = json.loads(json.dumps(others, default=str))
    return plain


def _of_kept(key: str, value: Any, kept: Kept) -> Any:  # noqa: ANN401 - whatever a row holds
    """Return of a list with an entry a positive, or a negative, the entries of those that are kept."""
    sides = zip(("pos_", "neg_"), (kept.positives, kept.negatives), kept.given, strict=True)
    for start, places, given in sides:
        if str(key).startswith(start) and isinstance(value, (list, tuple)) and len(value) == given:
            return [value[place] for place in places]
    return value


def _documents(corpus: str | Path | None, subset: str | None) -> tuple[Dataset, dict[str, Any]] | None:
    """Read the documents to mine in."""
    if corpus is None:
        return None
    path = Path(corpus).expanduser()
    if _is_bright(path):
        if subset is None:
            msg = f"{path} has BRIGHT's layout, with several subsets: choose one with --subset"
            raise DataError(msg)
        files = data_files(path, "documents", subset)
        return _bright_documents(path, subset), {"folder": path.name, "revision": content_hash(files)}
    file = beir.find_file(path / beir.CORPUS) if path.is_dir() else path
    if file is None or not file.is_file():
        msg = f"{path} is no corpus: give JSON Lines with _id and text, a BEIR folder, or BRIGHT's layout"
        raise DataError(msg)
    return _dataset(beir.read_texts(file)), {"file": file.name, "revision": content_hash([file])}


def _dataset(texts: Iterable[tuple[str, str, str]]) -> Dataset:
    """Return columns ``id`` and ``text``; a title goes before its text, as MTEB puts it."""
    from datasets import Dataset

    rows = [(name, f"{title} {text}".strip() if title else text) for name, text, title in texts]
    return Dataset.from_dict({"id": [name for name, _ in rows], "text": [text for _, text in rows]})


def _titled(corpus: Dataset) -> Dataset:
    if "title" not in corpus.column_names:
        return corpus.select_columns(["id", "text"])
    columns = (corpus[name][:] for name in ("id", "text", "title"))
    return _dataset(zip(*columns, strict=True))


class _Corpus:
    """Documents, each text once, found by text and by id."""

    def __init__(self, documents: Dataset | None) -> None:
        self._documents = documents
        self._by_text: dict[str, int] = {}
        self._by_id: dict[str, int] = {}
        self._added: list[str] = []
        # Places of the documents that are kept: the first of equal ones.
        self._kept: list[int] = []
        for start in range(0, len(documents) if documents is not None else 0, _BATCH):
            assert documents is not None
            part = documents[start : start + _BATCH]
            for offset, (name, text) in enumerate(zip(part["id"], part["text"], strict=True)):
                self._take(name, text, start + offset)

    def _take(self, name: str, text: str, row: int) -> None:
        place = self._by_text.setdefault(text_key(text), len(self._kept))
        self._by_id[name] = place
        if place == len(self._kept):
            self._kept.append(row)

    def distinct(self, labels: Mapping[str, int]) -> dict[str, int]:
        """Return the labels of documents that are there; of equal texts the first and the highest label."""
        first: dict[int, str] = {}
        found: dict[str, int] = {}
        for name, label in labels.items():
            if name in self._by_id:
                kept = first.setdefault(self._by_id[name], name)
                found[kept] = max(label, found.get(kept, label))
        return found

    def places(self, names: Iterable[str]) -> list[int]:
        """Return the places of documents by id, each once; unknown ids are left out."""
        return list(dict.fromkeys(self._by_id[name] for name in names if name in self._by_id))

    def find(self, text: str) -> int | None:
        """Return the place of a text."""
        return self._by_text.get(text_key(text))

    def add(self, text: str) -> int:
        """Return the place of a text, which is added where it is missing."""
        place = self._by_text.setdefault(text_key(text), len(self._by_text))
        if place == len(self._kept) + len(self._added):
            self._added.append(text)
        return place

    @property
    def data(self) -> Dataset:
        """The documents, the added ones at the end."""
        from datasets import Dataset, concatenate_datasets

        names = _free_names(len(self._added), self._by_id)
        added = Dataset.from_dict({"id": names, "text": self._added}) if self._added else None
        if self._documents is None:
            return added if added is not None else Dataset.from_dict({"id": [], "text": []})
        whole = len(self._kept) == len(self._documents)
        kept = self._documents if whole else self._documents.select(self._kept)
        if added is None:
            return kept
        return concatenate_datasets([kept, added.cast(kept.features)])


def _free_names(count: int, taken: Mapping[str, int]) -> list[str]:
    """Return ids that no document has."""
    start = "positive"
    while any(f"{start}-{number}" in taken for number in range(count)):
        start += "+"
    return [f"{start}-{number}" for number in range(count)]
