"""Step 6: labelled queries to the samples that ``reasonembed train`` reads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.files import (
    fingerprint,
    json_line,
    json_text,
    read_json_object,
    replacing,
    write_whole,
)
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.reason import reasoned, refusal, sides
from reasonembed_mteb.synthesis.step import FORMAT, Step, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reasonembed_mteb.synthesis.config import FormatSection, SubsetSection
    from reasonembed_mteb.synthesis.shards import Row
    from reasonembed_mteb.synthesis.step import Run

# Where the samples lie, and how their files end, as the published data's do (PROTOCOL section 6).
FOLDER, SUFFIX = "formatted", "-formatted"
# Queries whose documents are in memory at a time.
_SIZE = 16


def formatted_file(run: Run, subset: SubsetSection) -> Path:
    """Return the file of a subset's samples."""
    return run.folder / FOLDER / f"{subset.name}{SUFFIX}.jsonl"


def _note_file(run: Run, subset: SubsetSection) -> Path:
    return run.folder / "format" / f"{subset.name}.json"


def _fingerprint(run: Run, subset: SubsetSection) -> str:
    labels = need(labelled(run, subset), "annotate", subset)["output"]
    reasons = need(reasoned(run, subset), "reason", subset)["output"]
    domain, section = run.domain(subset), run.config.format.model_dump()
    corpus = run.corpus(subset).fingerprint
    return fingerprint(
        FORMAT, "format with labels", subset.name, labels, reasons, corpus, domain.instruction, section
    )


def formatted(run: Run, subset: SubsetSection) -> dict[str, Any] | None:
    """Return what the step counted, or None where it has to run."""
    note = read_json_object(_note_file(run, subset))
    if note is None:
        return None
    file = formatted_file(run, subset)
    same = note.get("fingerprint") == _fingerprint(run, subset)
    return note if same and file.is_file() and run.hashes.of([file]) == note["output"] else None


def format_samples(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset."""
    counts: Counter[str] = Counter()
    file = formatted_file(run, subset)
    for part in file.parent.glob(f".{file.name}.*.part"):
        # What a killed process was writing.
        part.unlink(missing_ok=True)
    with replacing(file) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        for sample in _samples(run, subset, counts):
            stream.write(json_line(sample))
    names = ("rows", "kept", "without_reasoning", "positives", "negatives", "repeated_texts")
    note = {
        "fingerprint": _fingerprint(run, subset),
        "output": run.hashes.of([file]),
        **{name: counts.pop(name, 0) for name in names},
        "dropped": dict(sorted(counts.items())),
    }
    write_whole(_note_file(run, subset), json_text(note))


def _samples(run: Run, subset: SubsetSection, counts: Counter[str]) -> Iterator[Row]:
    block = in_blocks(labelled(run, subset).rows(), _SIZE)
    reasons = reasoned(run, subset).rows(dropped=True)
    section, index = run.config.format, 0
    while rows := block(index):
        index += 1
        chosen = [(row, *sides(row, section)) for row in rows]
        texts = run.corpus(subset).texts(name for _, good, bad in chosen for name in [*good, *bad])
        for row, good, bad in chosen:
            counts["rows"] += 1
            # One row there for each query that is not refused here, in the same order.
            why = refusal(good, bad, section) or _add_reasoning(row, next(reasons), section)
            if not why:
                positives, negatives = _texts(good, bad, texts, counts)
                # The same text under two ids counts once.
                why = refusal(positives, negatives, section)
            if why:
                counts[why] += 1
                continue
            positives, negatives = positives[: section.max_positives], negatives[: section.max_negatives]
            sample = _sample(run, subset, row, positives, negatives)
            sample |= _grades(row, texts, positives, negatives)
            _count(sample, counts)
            yield sample


def _add_reasoning(row: Row, reason: Row, section: FormatSection) -> str | None:
    """Put the reasoning query into the row; say why not, where it has to be there."""
    if "dropped" in reason:
        return "no reasoning query" if section.need_reasoning else None
    row["reasoning_query"] = reason["reasoning_query"]
    return None


def _texts(
    good: list[str], bad: list[str], texts: dict[str, str], counts: Counter[str]
) -> tuple[list[str], list[str]]:
    positives = list(dict.fromkeys(texts[name] for name in good))
    # The same text under two ids can have two labels: a positive is no negative.
    negatives = [text for text in dict.fromkeys(texts[name] for name in bad) if text not in positives]
    counts["repeated_texts"] += len(good) + len(bad) - len(positives) - len(negatives)
    return positives, negatives


def _grades(
    row: Row, texts: dict[str, str], positives: list[str], negatives: list[str]
) -> dict[str, list[int]]:
    """Return each text's label, 1 to 5, in FlagEmbedding's fields; of a text under two ids the higher one."""
    grades: dict[str, int] = {}
    for name, label in zip(row["documents"], row["labels"], strict=True):
        if name in texts:
            grades[texts[name]] = max(label, grades.get(texts[name], label))
    return {
        "pos_scores": [grades[text] for text in positives],
        "neg_scores": [grades[text] for text in negatives],
    }


def _count(sample: Row, counts: Counter[str]) -> None:
    counts["kept"] += 1
    counts["without_reasoning"] += "reasoning_query" not in sample
    counts["positives"] += len(sample["pos"])
    counts["negatives"] += len(sample["neg"])


def _sample(run: Run, subset: SubsetSection, row: Row, positives: list[str], negatives: list[str]) -> Row:
    section = run.config.format
    group, batch = section.groups.get(subset.name, section.other_group)
    return {
        "prompt": run.domain(subset).instruction,
        "query": row["query"],
        **{key: row[key] for key in ("reasoning_query",) if key in row},
        "pos": positives,
        "neg": negatives,
        "train_group_size": group,
        "batch_size": batch,
    }


STEP = Step("format", format_samples, formatted)
