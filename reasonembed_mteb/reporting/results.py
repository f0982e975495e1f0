"""Results as a report knows them: whose, on what, which score; and a name for each model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, order=True)
class Model:
    """A model as its results name it.

    Attributes:
        name: MTEB's name, ``org/name``.
        revision: Its revision; two of one model are two models here.
        options: What set it apart: experiment options, a reranking, a smoke run.
        source: The folder it was read from, where two folders disagree about it.
    """

    name: str
    revision: str
    options: str = ""
    source: str = ""


@dataclass(frozen=True)
class Result:
    """One main score.

    Attributes:
        model: Whose.
        task: MTEB task name.
        split: Split of the data.
        subset: MTEB's subset of the task, mostly ``default``.
        score: Main score, ``[0, 1]`` for retrieval.
        metric: Its name, or None where neither we nor MTEB know the task.
        file: The result file.
        mteb_version: Which MTEB wrote it.
        data_revision: Revision of the data.
        seconds: How long it took, if that is known.
        limit: Number of queries of a smoke run; None for a full one.
        record: What `reasonembed run` recorded beside it; empty for others' results.
        meta: MTEB's metadata of the model; empty where the folder has none.
        scores_file: Scores of record, query by query, or None.
    """

    model: Model
    task: str
    split: str
    subset: str
    score: float
    metric: str | None
    file: Path
    mteb_version: str
    data_revision: str
    seconds: float | None = None
    limit: int | None = None
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    scores_file: Path | None = None


@dataclass
class Results:
    """What was read.

    Attributes:
        found: Every score, in the order of the files.
        problems: One line for each file that was left out, and why.
    """

    found: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[Model]:
        """Every model once, in order of name."""
        return sorted({result.model for result in self.found})

    @property
    def labels(self) -> dict[Model, str]:
        """A short name for each model; what sets it apart is added where two share one."""
        named = {model: _label(model) for model in self.models}
        names = Counter(named.values())
        named = {
            model: f"{label} @{model.revision[:8]}" if names[label] > 1 else label
            for model, label in named.items()
        }
        names = Counter(named.values())
        return {
            model: f"{label} in {model.source or 'another folder'}" if names[label] > 1 else label
            for model, label in named.items()
        }

    def model(self, name: str) -> Model:
        """Return a model by its label, its full name or the last part of it.

        Args:
            name: As the user wrote it.

        Raises:
            UnknownNameError: If there is none.
            ReasonEmbedError: If the name fits several.
        """
        labels = self.labels
        for names in (labels, {m: m.name for m in labels}, {m: m.name.split("/")[-1] for m in labels}):
            fitting = [model for model, given in names.items() if given == name]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                choice = ", ".join(repr(labels[model]) for model in fitting)
                msg = f"{name!r} names {len(fitting)} models of these results: give one of {choice}"
                raise ReasonEmbedError(msg)
        raise unknown_name("model of these results", name, labels.values())


def _label(model: Model) -> str:
    return f"{model.name} ({model.options})" if model.options else model.name
