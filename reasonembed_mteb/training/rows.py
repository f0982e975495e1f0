"""One row of training data: every known shape of it, checked and made one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import is_number
from reasonembed_mteb.models.special_tokens import latent_in
from reasonembed_mteb.training.schema import MOST_DOCUMENTS, MOST_QUERIES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

# The names that data sets give to the same thing; the first is reason-embed-data's.
QUERY = ("query", "anchor", "question")
REASONING = ("reasoning_query",)
POSITIVES = ("pos", "positives", "positive", "positive_passages")
NEGATIVES = ("neg", "negatives", "negative", "negative_passages")
INSTRUCTION = ("prompt", "instruction")
# What a model with latent tokens writes after the query, and what is read from its latents alone.
GENERATION_TARGET = "generation_target"
COMPRESSION_QUESTION, COMPRESSION_TARGET = "compression_question", "compression_target"
# FlagEmbedding's fields for the shape of a subset's batches, by our names (`BatchShape`).
SHAPE_FIELDS = {"group": "train_group_size", "queries": "batch_size"}
# And for the grades of documents, which distillation learns from.
POSITIVE_GRADES, NEGATIVE_GRADES = "pos_scores", "neg_scores"
TARGETS = (GENERATION_TARGET, COMPRESSION_QUESTION, COMPRESSION_TARGET)
_SHOWN = 40


class _Document(NamedTuple):
    """A text with its grade, or None, and its place among those that its row gives."""

    text: str
    grade: float | None
    place: int


_Graded = list[_Document]


@dataclass
class Row:
    """A row that can be trained on.

    Attributes:
        query: Its text, without instruction.
        positives: At least one text.
        negatives: Texts, none of them a positive; empty where the source has none.
        reasoning: The reasoning query, or None.
        instruction: The row's own instruction, or None.
        group: Documents a query that the row asks for, or None.
        queries: Queries a device that it asks for, or None.
        positive_grades: A number for each positive, or None.
        negative_grades: A number for each negative, or None.
        generation_target: Text that is to be written after the query, or None.
        compression_question: Text that stands before the compression target and is given, or None.
        compression_target: Text that is to be read from the query's latent tokens, or None.
    """

    query: str
    positives: list[str]
    negatives: list[str] = field(default_factory=list)
    reasoning: str | None = None
    instruction: str | None = None
    group: int | None = None
    queries: int | None = None
    positive_grades: list[float] | None = None
    negative_grades: list[float] | None = None
    generation_target: str | None = None
    compression_question: str | None = None
    compression_target: str | None = None


@dataclass(frozen=True)
class Kept:
    """Which texts of a raw row are in the `Row` that was made of it.

    Attributes:
        positives: Places of the kept ones among those that the raw row gives.
        negatives: Likewise.
        given: How many positives and negatives the raw row gives.
    """

    positives: list[int]
    negatives: list[int]
    given: tuple[int, int]


class BadRowError(DataError):
    """A row of the wrong shape; the message has no place in it yet."""


def parse_row(raw: Any, counts: Counter[str]) -> Row | None:  # noqa: ANN401 - whatever a file holds
    """Turn one raw row into a `Row`, or into nothing where it has nothing to learn from.

    Args:
        raw: A mapping with a query, positives and negatives under any of the names above. Texts may be
            strings, ``[instruction, text]`` pairs (reasonir-data) or ``{"title", "text"}`` mappings.
        counts: What was dropped or missing, by reason; counted up here.

    Returns:
        The row, or None where it is dropped.

    Raises:
        BadRowError: If a field is missing or of a wrong type.
    """
    found = parse_kept(raw, counts)
    return None if found is None else found[0]


def parse_kept(raw: Any, counts: Counter[str]) -> tuple[Row, Kept] | None:  # noqa: ANN401 - whatever a file holds
    """Do what `parse_row` does, and say which of the raw row's texts were kept.

    Args:
        raw: See `parse_row`.
        counts: Likewise.

    Raises:
        BadRowError: If a field is missing or of a wrong type.
    """
    if not isinstance(raw, dict):
        msg = f"a row must be an object, not {_kind(raw)}"
        raise BadRowError(msg)
    query, own = _query(raw)
    positives = _texts(raw, POSITIVES, required=True)
    negatives = _texts(raw, NEGATIVES, required=False) + _numbered(raw)
    reasoning = _optional(raw, REASONING)
    targets = {name: _optional(raw, (name,)) for name in TARGETS}
    _check_latents(targets)
    given = [text for text in targets.values() if text]
    _check_unicode([query, reasoning or "", own or "", *given, *positives, *negatives])
    if not query.strip():
        counts["rows dropped: empty query"] += 1
        return None
    graded = _graded(raw, positives, negatives)
    good, bad = _usable(*graded, counts)
    if not good:
        counts["rows dropped: no positive"] += 1
        return None
    row = Row(query, [one.text for one in good], [one.text for one in bad], instruction=own)
    row.reasoning = reasoning if reasoning and reasoning.strip() else None
    row.group, row.queries = _shape(raw)
    for name, text in targets.items():
        setattr(row, name, text if text and text.strip() else None)
    if all(one.grade is not None for one in (*good, *bad)):
        row.positive_grades = [one.grade for one in good if one.grade is not None]
        row.negative_grades = [one.grade for one in bad if one.grade is not None]
    kept, others = ([one.place for one in side] for side in (good, bad))
    return row, Kept(kept, others, (len(positives), len(negatives)))


def _graded(raw: Mapping[str, Any], positives: list[str], negatives: list[str]) -> tuple[_Graded, _Graded]:
    """Pair each text with its grade, or None where a side has none."""
    good, bad = (
        list(map(_Document, texts, _grades(raw, name, len(texts)), range(len(texts))))
        for name, texts in ((POSITIVE_GRADES, positives), (NEGATIVE_GRADES, negatives))
    )
    return good, bad


def _grades(raw: Mapping[str, Any], name: str, count: int) -> Sequence[float | None]:
    value = raw.get(name)
    if value is None or value == []:
        return [None] * count
    numbers = [one for one in value if is_number(one)] if isinstance(value, (list, tuple)) else []
    if not isinstance(value, (list, tuple)) or len(numbers) < len(value):
        msg = f"{name} must be a list of numbers, not {_kind(value)}: {_shown(value)}"
        raise BadRowError(msg)
    if len(numbers) != count:
        msg = f"{name} has {len(numbers)} numbers for {count} texts: give one for each text"
        raise BadRowError(msg)
    return [float(number) for number in numbers]


def _usable(good: _Graded, bad: _Graded, counts: Counter[str]) -> tuple[_Graded, _Graded]:
    """Leave out empty texts, and negatives that are positives."""
    kept = _without_empty(good, "positives", counts)
    texts = {one.text for one in kept}
    others = [one for one in bad if one.text not in texts]
    if kept:
        counts["negatives removed: equal to a positive"] += len(bad) - len(others)
        others = _without_empty(others, "negatives", counts)
    return kept, others


def _shape(raw: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return documents a query and queries a device, where the row asks for them; 0 asks for nothing."""
    found = []
    for name, most in zip(SHAPE_FIELDS.values(), (MOST_DOCUMENTS, MOST_QUERIES), strict=True):
        # A column in which some rows have no value comes from pandas as floats.
        value = raw.get(name) or 0
        if not is_number(value) or value != int(value) or not 0 <= value <= most:
            msg = f"{name} must be a whole number from 1 to {most:,}, not {_shown(raw[name])}"
            raise BadRowError(msg)
        found.append(int(value) or None)
    return found[0], found[1]


def _check_latents(targets: Mapping[str, str | None]) -> None:
    """Refuse targets that hold a latent token's name: its share is 0, as none is ever to be written."""
    for name, text in targets.items():
        if why := latent_in(text or ""):
            msg = f"{name} {why}"
            raise BadRowError(msg)


def _check_unicode(texts: list[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can spell half a character (\\ud83d), which no tokenizer takes.
            msg = f"half a character (a lone surrogate) in {_shown(text)}"
            raise BadRowError(msg) from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _find(raw: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first name that holds something, else the first that is there."""
    there = [name for name in names if raw.get(name) is not None]
    held = (name for name in there if not isinstance(raw[name], (str, list, tuple)) or raw[name])
    return next(held, next(iter(there), None))


def _query(raw: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return query and instruction; reasonir-data writes both as a pair."""
    name = _find(raw, QUERY)
    if name is None:
        msg = f"no query: one of {', '.join(QUERY)} must hold text; the row has {_names(raw)}"
        raise BadRowError(msg)
    value, own = raw[name], _optional(raw, INSTRUCTION)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[1], value[0] or own
    if not isinstance(value, str):
        msg = f"{name} must be text, not {_kind(value)}: {_shown(value)}"
        raise BadRowError(msg)
    return value, own


def _names(raw: Mapping[str, Any]) -> str:
    return ", ".join(map(str, raw)) or "no fields"


def _optional(raw: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    name = _find(raw, names)
    if name is None:
        return None
    if not isinstance(raw[name], str):
        msg = f"{name} must be text or null, not {_kind(raw[name])}: {_shown(raw[name])}"
        raise BadRowError(msg)
    text: str = raw[name]
    return text


def _texts(raw: Mapping[str, Any], names: tuple[str, ...], *, required: bool) -> list[str]:
    name = _find(raw, names)
    if name is None:
        if required:
            msg = f"no positives: one of {', '.join(names)} must hold texts; the row has {_names(raw)}"
            raise BadRowError(msg)
        return []
    value = raw[name]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        msg = f"{name} must be a list of texts, not {_kind(value)}: {_shown(value)}"
        raise BadRowError(msg)
    return [_text(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _numbered(raw: Mapping[str, Any]) -> list[str]:
    """Return ``negative_1`` ... ``negative_n``, sentence-transformers' columns."""
    names = [name for name in raw if str(name).startswith("negative_") and str(name)[9:].isdigit()]
    return [_text(raw[name], name) for name in names if raw[name] is not None]


def _text(item: object, place: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return "\n".join(part for part in item if part)
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        parts = (item.get("title"), item["text"])
        return "\n".join(part for part in parts if isinstance(part, str) and part)
    msg = f"{place} must be text, not {_kind(item)}: {_shown(item)}"
    raise BadRowError(msg)


def _without_empty(graded: _Graded, what: str, counts: Counter[str]) -> _Graded:
    kept = [one for one in graded if one.text.strip()]
    counts[f"{what} removed: empty"] += len(graded) - len(kept)
    return kept
