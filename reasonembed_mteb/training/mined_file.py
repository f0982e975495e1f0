"""A file of mined negatives, and beside it the record of everything that decided it."""

from __future__ import annotations

import gzip
import logging
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import (
    content_hash,
    fingerprint,
    json_line,
    json_text,
    package_versions,
    read_json_object,
    replacing,
    write_whole,
)
from reasonembed_mteb.models.instructions import loaded_prefix
from reasonembed_mteb.retrieval.lengths import current_length
from reasonembed_mteb.retrieval.lexical import LexicalModel
from reasonembed_mteb.store.encoder import model_fingerprint
from reasonembed_mteb.training.mining import mine_pairs, search_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from reasonembed_mteb.retrieval.reranker import Reranker
    from reasonembed_mteb.training.mining import Mined
    from reasonembed_mteb.training.negatives import MiningRules
    from reasonembed_mteb.training.pairs import Pairs

logger = logging.getLogger(__name__)

# Rows whose texts are in memory at a time while they are written.
_ROWS = 1024


def mine_file(
    pairs: Pairs,
    output: Path,
    model: Any,  # noqa: ANN401 - mteb's EncoderProtocol
    rules: MiningRules,
    *,
    reranker: Reranker | None = None,
    store: Path | None = None,
    with_scores: bool = False,
    batch_size: int = 32,
    max_length: int | None = None,
    say: Callable[[str], None] = logger.info,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Mine negatives and write rows that `reasonembed train` and FlagEmbedding read, whole or not at all.

    A killed run goes on where it stopped: vectors and the reranker's scores are kept until the file is there.

    Args:
        pairs: The rows and their corpus.
        output: JSON Lines, gzipped where the name ends with ``.gz``; beside it, under the whole name and
            ``.mining.json``, a record of everything that decided it is written.
        model: See `mine_pairs`.
        rules: Which candidates become negatives.
        reranker: See `mine_pairs`.
        store: Folder of an embedding store to use and to keep; None for one that is removed in the end.
        with_scores: Whether ``pos_scores`` and ``neg_scores`` are written.
        batch_size: Texts encoded at a time.
        max_length: Tokens of a text; None for the model's own.
        say: Takes a line for people.
        show_progress: Whether bars are shown.

    Returns:
        The record.

    Raises:
        ReasonEmbedError: If the file is another's, or cannot be written.
    """
    if with_scores and any(row["neg"] for row in pairs.rows):
        msg = "rows have negatives of their own, which get no score here: take them out, or write no scores"
        raise DataError(msg)
    if output.suffix == ".parquet":
        msg = f"{output} would be JSON Lines under Parquet's name: name it .jsonl or .jsonl.gz"
        raise DataError(msg)
    note = output.with_name(f"{output.name}.mining.json")
    record = _record(pairs, model, rules, reranker, max_length, with_scores)
    if (known := _known(output, note, record["fingerprint"])) is not None:
        say(f"{output} is there already, made from the same things")
        return known
    work = output.with_name(f".{output.name}.work")
    mined = mine_pairs(
        pairs,
        model,
        rules,
        store=store or (None if isinstance(model, LexicalModel) else work / "vectors"),
        reranker=reranker,
        scores_folder=work / "scores",
        batch_size=batch_size,
        max_length=max_length,
        show_progress=show_progress,
    )
    counts = Counter(mined.counts)
    rows = mined_rows(pairs, mined, counts, with_scores=with_scores)
    with replacing(output) as part:
        _write(part, rows, packed=output.suffix == ".gz")
    record |= {"counts": dict(counts), "output": content_hash([output])}
    write_whole(note, json_text(record))
    shutil.rmtree(work, ignore_errors=True)
    return record


def _write(file: Path, rows: Iterable[dict[str, Any]], *, packed: bool) -> None:
    with (
        file.open("wb") as stream,
        # No name and no time, so that equal rows are equal bytes.
        gzip.GzipFile("", "wb", fileobj=stream, mtime=0) if packed else nullcontext(stream) as lines,
    ):
        lines.writelines(json_line(row).encode() for row in rows)


def _known(output: Path, note: Path, made_from: str) -> dict[str, Any] | None:
    """Return the record of a file that is there already, None where it has to be made."""
    if not output.exists():
        return None
    record = read_json_object(note)
    if record is None or "fingerprint" not in record:
        msg = f"{output} is there and was not mined (no {note.name} next to it): give another name"
        raise DataError(msg)
    same = record["fingerprint"] == made_from and record.get("output") == content_hash([output])
    return record if same else None


def _record(
    pairs: Pairs,
    model: Any,  # noqa: ANN401 - mteb's EncoderProtocol
    rules: MiningRules,
    reranker: Reranker | None,
    max_length: int | None,
    with_scores: bool,
) -> dict[str, Any]:
    """Say everything that decides the file."""
    record: dict[str, Any] = {
        "source": pairs.source,
        "rows": len(pairs),
        "left_out": dict(pairs.counts),
        "documents": len(pairs.corpus),
        **_model_record(pairs, model, max_length),
        "rules": asdict(rules),
        "reranker": None if reranker is None else reranker.identity,
        "scores": with_scores,
        "versions": package_versions(),
    }
    exact = model.identity if isinstance(model, LexicalModel) else model_fingerprint(model)
    return {"fingerprint": fingerprint(record, exact), **record}


def _model_record(pairs: Pairs, model: Any, max_length: int | None) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(model, LexicalModel):
        return {"model": model.identity, "max_tokens": None, "before_queries": {}}
    meta, own = model.mteb_model_meta, current_length(model)
    instructions = sorted({row.get("prompt") or "" for row in pairs.rows})
    return {
        "model": {"name": meta.name, "revision": meta.revision},
        "max_tokens": own if max_length is None else min(max_length, own or max_length),
        "before_queries": {one: loaded_prefix(model, search_task(one)) for one in instructions},
    }


class _Texts(NamedTuple):
    """Ids and texts of documents by place; ids only where they are wanted."""

    ids: dict[int, str]
    texts: dict[int, str]


def mined_rows(
    pairs: Pairs, mined: Mined, counts: Counter[str], *, with_scores: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the file; a row without any negative is left out.

    Args:
        pairs: The rows.
        mined: What was mined for them.
        counts: Rows written and left out are counted here.
        with_scores: Whether scores are added.
    """
    for start in range(0, len(pairs), _ROWS):
        block = range(start, min(start + _ROWS, len(pairs)))
        texts = _texts(pairs, chain.from_iterable(mined.negatives[row].tolist() for row in block))
        for row in block:
            line = _line(pairs, mined, row, texts, counts)
            if with_scores:
                line |= {
                    "pos_scores": mined.positive_scores[row].tolist(),
                    "neg_scores": mined.scores[row].tolist(),
                }
            counts["rows written" if line["neg"] else "rows without a negative, left out"] += 1
            if line["neg"]:
                yield line


def _texts(pairs: Pairs, places: Iterable[int]) -> _Texts:
    """Return ids and texts of documents by place."""
    wanted = sorted(set(places))
    part = pairs.corpus[wanted]
    ids = dict(zip(wanted, part["id"], strict=True)) if pairs.named else {}
    return _Texts(ids, dict(zip(wanted, part["text"], strict=True)))


def _line(pairs: Pairs, mined: Mined, row: int, known: _Texts, counts: Counter[str]) -> dict[str, Any]:
    line, places = dict(pairs.rows[row]), mined.negatives[row].tolist()
    own = line["neg"]
    texts = [known.texts[place] for place in places]
    line["neg"] = [*own, *texts] if own else texts
    if not own and pairs.named:
        line["neg_ids"] = [known.ids[place] for place in places]
    elif places:
        # What is said of each of the row's own negatives is not known of the mined ones.
        for name in [name for name in line if name.startswith("neg_")]:
            del line[name]
            counts[f"rows whose {name} was left out"] += 1
    return line
