"""The documents that data is made from, and the benchmark's queries and labels that it is kept apart from.

Documents lie memory-mapped on the disk: a corpus costs its ids' memory at most, whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import content_hash, json_text, read_json_lines, read_json_object, write_whole
from reasonembed_mteb.retrieval import beir
from reasonembed_mteb.retrieval.labels import bright_examples, last_of_each_id, named_documents
from reasonembed_mteb.retrieval.sources import data_files, read_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datasets import Dataset

    from reasonembed_mteb.synthesis.config import Config, StartSection, SubsetSection

_SPLIT_SUFFIXES = (".parquet", ".jsonl")
# Documents read at a time.
_BATCH = 1000


@dataclass(frozen=True)
class Benchmark:
    """What must stay apart from the data that is made.

    Attributes:
        gold: Ids of relevant documents.
        excluded: Ids of excluded documents.
        queries: The queries' texts.
    """

    gold: frozenset[str]
    excluded: frozenset[str]
    queries: tuple[str, ...]


class Corpus:
    """The documents of one subset.

    Args:
        name: The subset.
        files: What was read, for the fingerprint.
        data: Data set with columns ``id`` and ``text``, ids unique.
        benchmark: What must stay apart.
    """

    def __init__(self, name: str, files: Sequence[Path], data: Dataset, benchmark: Benchmark) -> None:
        """Keep what was loaded."""
        self.name = name
        self.files = sorted(files)
        self.data = data
        self.benchmark = benchmark

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.data)

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the files' content."""
        return content_hash(self.files)

    def documents(self, positions: Iterable[int] | None = None) -> Iterator[tuple[int, str, str]]:
        """Read documents, a batch at a time.

        Args:
            positions: Which; all by default.

        Yields:
            Position, id and text.
        """
        wanted = range(len(self)) if positions is None else list(positions)
        for start in range(0, len(wanted), _BATCH):
            chosen = wanted[start : start + _BATCH]
            batch = self.data[chosen.start : chosen.stop] if isinstance(chosen, range) else self.data[chosen]
            yield from zip(chosen, batch["id"], batch["text"], strict=True)

    def texts(self, names: Iterable[str]) -> dict[str, str]:
        """Return the texts of some documents by id.

        Args:
            names: Ids, each in the corpus.
        """
        return {name: text for _, name, text in self.documents(self.positions(names).values())}

    def positions(self, names: Iterable[str]) -> dict[str, int]:
        """Return the places of some documents by id.

        Args:
            names: Ids, each in the corpus.

        Raises:
            DataError: If one is not there.
        """
        places = self._places(names)
        if lost := next((name for name, place in places.items() if place is None), None):
            msg = f"{self.name}: document {lost!r} is not in the corpus any more"
            raise DataError(msg)
        return {name: place for name, place in places.items() if place is not None}

    def holds(self, names: Iterable[str]) -> set[str]:
        """Return those names that are ids of documents.

        Args:
            names: Ids, or anything else.
        """
        return {name for name, place in self._places(names).items() if place is not None}

    def _places(self, names: Iterable[str]) -> dict[str, int | None]:
        import pyarrow as pa
        import pyarrow.compute as pc

        unique = list(dict.fromkeys(names))
        found = pc.index_in(pa.array(unique, pa.large_string()), value_set=self.ids)
        return dict(zip(unique, found.to_pylist(), strict=True))

    def names_of(self, texts: Iterable[str]) -> dict[str, str]:
        """Return the ids of documents by their texts; what no document says is left out.

        Args:
            texts: Texts; space around them does not count.
        """
        wanted = {text.strip(): text for text in texts}
        if not wanted:
            return {}
        found: dict[str, str] = {}
        for _, name, text in self.documents():
            if (given := wanted.get(text.strip())) is not None:
                found.setdefault(given, name)
        return found

    @cached_property
    def ids(self) -> Any:  # noqa: ANN401 - pyarrow.Array
        """Every document's id, in order, as an Arrow array."""
        import pyarrow as pa

        column = self.data.with_format("arrow")[:]["id"]
        combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return combined.cast(pa.large_string())


def open_corpus(subset: SubsetSection, config: Config) -> Corpus:
    """Open a subset's corpus.

    Args:
        subset: Its own layout and path go before those of the run.
        config: The run.

    Returns:
        The corpus.

    Raises:
        DataError: If a file is missing or damaged, or there are fewer than two documents.
    """
    path = subset.path or config.corpus.path
    if path is None:
        msg = f"subset {subset.name} has no path; write path = ... under [corpus] or in its own table"
        raise DataError(msg)
    folder, layout = config.path(path), subset.layout or config.corpus.layout
    if not folder.exists():
        msg = f"subset {subset.name}: {folder} does not exist; correct path, which is relative to the file"
        raise DataError(msg)
    start = subset.start
    # What a user begins with is no benchmark's, though it may lie in one folder with what is.
    own = None if start is None or config.path(start.path).resolve() != folder.resolve() else start
    if layout == "bright":
        corpus = _bright(folder, subset.name, own, every=config.corpus.protect == "all")
    elif layout == "beir":
        corpus = _beir(folder, subset.name, own)
    else:
        queries = None if subset.queries is None else config.path(subset.queries)
        corpus = _jsonl(folder, subset.name, queries)
    if len(corpus) < 2:
        msg = (
            f"subset {subset.name}: the corpus in {folder} has {len(corpus)} documents; two are needed at "
            "least, one to write a query from and one to find with it"
        )
        raise DataError(msg)
    return corpus


def check_unchanged(corpus: Corpus, note: Path) -> None:
    """Record a corpus' fingerprint, or compare it with the one recorded before.

    Args:
        corpus: As it is now.
        note: The file of the record.

    Raises:
        DataError: If the corpus is another than in an earlier step.
    """
    if note.is_file():
        before = read_json_object(note) or {}
        if before.get("fingerprint") != corpus.fingerprint:
            named = ", ".join(str(file) for file in corpus.files[:3])
            msg = (
                f"the corpus of {corpus.name} is not the one that earlier steps read ({named} changed); "
                f"restore it, or start again in another output folder"
            )
            raise DataError(msg)
        return
    content = {"fingerprint": corpus.fingerprint, "documents": len(corpus), "subset": corpus.name}
    write_whole(note, json_text(content))


def _with_text(data: Dataset, id_column: str, text_column: str, name: str) -> Dataset:
    """Return columns ``id`` and ``text``; a title goes before its text, as MTEB puts it."""
    for column in (id_column, text_column):
        if count := data.data.column(column).null_count:
            msg = f"subset {name}: {count} documents have no {column}; download the corpus again"
            raise DataError(msg)
    if "title" in data.column_names:
        columns = data.column_names

        def joined(batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
            pairs = zip(batch["title"], batch[text_column], strict=True)
            return {
                "id": [str(one) for one in batch[id_column]],
                "text": [f"{title} {text}".strip() if title else text or "" for title, text in pairs],
            }

        data = data.map(joined, batched=True, remove_columns=columns, desc=f"{name}: titles")
    else:
        renames = {id_column: "id", text_column: "text"}
        data = data.select_columns([id_column, text_column])
        data = data.rename_columns({old: new for old, new in renames.items() if old != new})
    return last_of_each_id(data, name)


def _bright(folder: Path, name: str, start: StartSection | None, *, every: bool) -> Corpus:
    files = data_files(folder, "documents", name)
    data = _with_text(read_files(files, ("id", "content")), "id", "content", name)
    own = _examples_files(folder, name)
    splits = _splits(folder) if every else [name]
    others = [file for split in splits if split != name for file in _examples_files(folder, split)]
    begun = [] if start is None else _examples_files(folder, start.split or name)
    apart = [file for file in [*own, *others] if file not in begun]
    return Corpus(name, [*files, *own, *others], data, _bright_benchmark(apart))


def _examples_files(folder: Path, split: str) -> list[Path]:
    return data_files(folder, "examples", split)


def _splits(folder: Path) -> list[str]:
    """Name every subset whose queries the data set holds."""
    inside = [file.name for file in (folder / "examples").glob("*") if file.suffix in _SPLIT_SUFFIXES]
    beside = [file.name.removeprefix("examples-") for file in folder.glob("examples-*.jsonl")]
    return sorted({name.rpartition(".")[0].split("-0")[0] for name in [*inside, *beside]})


def _bright_benchmark(files: Sequence[Path]) -> Benchmark:
    gold: set[str] = set()
    excluded: set[str] = set()
    queries: list[str] = []
    for file in files:
        rows = read_files([file], ("id", "query", "gold_ids", "excluded_ids"))
        queries += rows["query"][:]
        found = bright_examples(rows)
        gold.update(name for names in found.labels.values() for name in names)
        excluded.update(name for names in found.excluded.values() for name in names)
    return Benchmark(frozenset(gold), frozenset(excluded), tuple(queries))


def _jsonl_data(file: Path, name: str) -> Dataset:
    first = next(_lines(file), None)
    if first is None:
        msg = f"subset {name}: the corpus {file} is empty; two documents are needed at least"
        raise DataError(msg)
    _, row = first
    id_column = next((key for key in ("id", "_id") if key in row), None)
    text_column = next((key for key in ("text", "content", "contents") if key in row), None)
    if id_column is None or text_column is None:
        msg = f"{file}:1 has keys {', '.join(row)}; a document needs id (or _id) and text (or content)"
        raise DataError(msg)
    columns = [id_column, text_column, *(["title"] if "title" in row else [])]
    try:
        data = read_files([file], tuple(columns))
    except DataError:
        # The reader knows no line numbers.
        _check_lines(file, id_column, text_column)
        raise
    odd = any(data.features[key].dtype not in ("string", "large_string") for key in columns)
    if odd or data.data.column(text_column).null_count or data.data.column(id_column).null_count:
        _check_lines(file, id_column, text_column)
    return _with_text(data, id_column, text_column, name)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read objects with the numbers of their lines."""
    for number, row in read_json_lines(file):
        if not isinstance(row, dict):
            msg = f"{file}:{number} is no JSON object; write one document or query a line"
            raise DataError(msg)
        yield number, row


def _check_lines(file: Path, id_column: str, text_column: str) -> None:
    for number, row in _lines(file):
        for key in (id_column, text_column):
            if not isinstance(row.get(key), str):
                given = type(row.get(key)).__name__
                msg = f"{file}:{number}: {key} is {given}, not a string; correct that line"
                raise DataError(msg)


def _jsonl(file: Path, name: str, queries: Path | None) -> Corpus:
    files = [file] if queries is None else [file, queries]
    gold: set[str] = set()
    excluded: set[str] = set()
    texts: list[str] = []
    for number, row in _lines(queries) if queries is not None else ():
        text = row.get("query", row.get("text"))
        if not isinstance(text, str):
            msg = f"{queries}:{number} has no query (or text); correct that line"
            raise DataError(msg)
        texts.append(text)
        gold.update(named_documents(row.get("gold_ids")))
        excluded.update(named_documents(row.get("excluded_ids")))
    apart = Benchmark(frozenset(gold), frozenset(excluded), tuple(texts))
    return Corpus(name, files, _jsonl_data(file, name), apart)


def _beir(folder: Path, name: str, start: StartSection | None) -> Corpus:
    """Read a BEIR folder by the reader that `run --beir` has; every other split's gold stays apart."""
    file = beir.find_file(folder / beir.CORPUS)
    if file is None:
        msg = f"subset {name}: {folder} has no {beir.CORPUS}; give a BEIR folder, or another layout"
        raise DataError(msg)
    data = _beir_data(file)
    if start is not None and start.split is None:
        return Corpus(name, [file], data, Benchmark(frozenset(), frozenset(), ()))
    apart = beir.read_protected(folder, set(data["id"][:]), None if start is None else start.split)
    benchmark = Benchmark(apart.gold, apart.excluded, apart.queries)
    return Corpus(name, [file, *apart.files], data, benchmark)


def _beir_data(file: Path) -> Dataset:
    """Convert a BEIR corpus once; it is then memory-mapped, and found again by its content."""
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    options = {"file": str(file), "content": content_hash([file])}
    features = Features({"id": Value("string"), "text": Value("string")})
    try:
        data = Dataset.from_generator(_titled_texts, features=features, gen_kwargs=options)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        msg = f"{file} cannot be read ({error.__cause__ or error}); write it again"
        raise DataError(msg) from error
    converted: Dataset = data
    return converted


def _titled_texts(file: str, content: str) -> Iterator[dict[str, str]]:
    """Yield id and text, the title before it as MTEB puts it; ``content`` names what was converted."""
    del content
    for name, text, title in beir.read_texts(Path(file)):
        yield {"id": name, "text": f"{title} {text}".strip() if title else text}
