"""What an attack on a corpus did, as a typed record: one writer, one reader."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.chapter_files import chapter_file, read_chapter, write_chapter
from reasonembed_mteb.files import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

KIND = "poisoning"
# How a passage reaches the model.
TEXT, IDS = "text", "ids"


@dataclass(frozen=True)
class PoisoningOutcome:
    """One attack on one model.

    Attributes:
        model: Who retrieved; the attacked model, or one that the passages were transferred to.
        attack: Its name.
        fed: ``text``, which an attacker can insert, or ``ids``, the tokens as the search left them.
        asr: Share of the attacked queries with a poisoned document among the first k, by k.
        before: nDCG@10 on the clean corpus, ``[0, 1]``.
        after: nDCG@10 on the poisoned one.
        loss: What is lost, and the ends of its interval over queries: ``before - after``.
    """

    model: str
    attack: str
    fed: str
    asr: dict[int, float]
    before: float
    after: float
    loss: tuple[float, float, float]


@dataclass(frozen=True)
class PoisoningRecord:
    """An attack on the corpus of one task, by one seed.

    Attributes:
        model: Whose gradients or clusters made the passages.
        task: MTEB task name.
        seed: Of the halves and of the search.
        documents: In the clean corpus.
        making: Queries that made the passages.
        attacked: Other queries, which the shares are of.
        halves: Whether both are halves of one split; False where the makers are of another split.
        settings: Sizes and rules of the search, and how far it went.
        objective: Mean objective of the passages at the start and at the end; None without a search.
        outcomes: By model and attack.
        folders: Where the poisoned corpora lie, as BEIR folders, by attack.
        versions: Of the packages that it depends on.
        causes: Hash of what else decided it: the model's weights, what it is told, the texts.
    """

    model: str
    task: str
    seed: int
    documents: int
    making: int
    attacked: int
    halves: bool
    settings: dict[str, Any]
    objective: tuple[float, float] | None
    outcomes: tuple[PoisoningOutcome, ...]
    folders: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    causes: str = ""

    @property
    def name(self) -> str:
        """What tells it from records of other models, tasks, seeds, documents and sizes; a file's name."""
        key = fingerprint(self.settings, self.documents, self.halves)[:8]
        return file_name(f"{self.model}-{self.task}-seed{self.seed}-{key}")


def write_poisoning(file: Path, record: PoisoningRecord) -> None:
    """Write a record, whole or not at all.

    Args:
        file: See `reasonembed_mteb.evaluation.chapter_files.chapter_file`.
        record: What was measured.
    """
    write_chapter(file, record)


def keep_poisoning(output: Path, record: PoisoningRecord) -> PoisoningRecord:
    """Write a record into an output folder, with what an earlier call measured of other attacks or models.

    Args:
        output: Output folder.
        record: What was measured.

    Returns:
        The record as it is kept. Outcomes of an earlier one are in it only where the same causes decided
        them, and this one did not measure them anew.
    """
    file = chapter_file(output, KIND, record.name)
    try:
        kept = _joined(read_poisoning(file), record)
    except DataError:
        # There is none, or it is damaged.
        kept = record
    write_poisoning(file, kept)
    return kept


def _joined(earlier: PoisoningRecord, later: PoisoningRecord) -> PoisoningRecord:
    if not later.causes or earlier.causes != later.causes:
        return later
    anew = {(one.model, one.attack) for one in later.outcomes}
    held = [one for one in earlier.outcomes if (one.model, one.attack) not in anew]
    return replace(
        later,
        objective=earlier.objective if later.objective is None else later.objective,
        outcomes=(*held, *later.outcomes),
        folders=earlier.folders | later.folders,
    )


def read_poisoning(file: Path) -> PoisoningRecord:
    """Read a record.

    Args:
        file: Written by `write_poisoning`.

    Raises:
        DataError: If it is damaged or of another format.
    """
    return read_chapter(file, _record, "an attack", "reasonembed poison")


def _record(content: dict[str, Any]) -> PoisoningRecord:
    outcomes = tuple(_outcome(one) for one in content.pop("outcomes"))
    objective = content.pop("objective")
    ends = None if objective is None else (float(objective[0]), float(objective[1]))
    causes = str(content.pop("causes", ""))
    names = {one.name for one in fields(PoisoningRecord)} - {"outcomes", "objective", "causes"}
    known = {name: content[name] for name in names}
    return PoisoningRecord(**known, objective=ends, outcomes=outcomes, causes=causes)


def _outcome(content: dict[str, Any]) -> PoisoningOutcome:
    mean, low, high = (float(one) for one in content.pop("loss"))
    asr = {int(k): float(share) for k, share in content.pop("asr").items()}
    return PoisoningOutcome(**content, asr=asr, loss=(mean, low, high))
