"""Scores during training: MTEB tasks on the model as it stands."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from reasonembed_mteb.training.metrics import EVALUATION_COLUMNS, MetricsFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from sentence_transformers import SentenceTransformer


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Put the random generators back afterwards: MTEB's tasks seed them, and dropout draws from them.

    Yields:
        Nothing.
    """
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that others seed
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(state)  # noqa: NPY002


def evaluation_tasks(names: Sequence[str]) -> list[AbsTask]:
    """Return the tasks to score during training, each once.

    Args:
        names: Of tasks, or of benchmarks for all of theirs; ours or MTEB's.

    Raises:
        UnknownNameError: If a name is neither; the nearest is named.
    """
    import mteb

    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.plugin import register

    register()
    known = {benchmark.name for benchmark in mteb.get_benchmarks()}
    benchmarks = [name for name in names if name in known]
    return resolve_tasks(benchmarks, [name for name in names if name not in known])


class TaskEvaluator(SentenceEvaluator):
    """Score a model that is being trained, by the protocol of `reasonembed run`."""

    def __init__(self, tasks: Sequence[AbsTask], file: Path | None = None) -> None:
        """Name the tasks.

        Args:
            tasks: MTEB tasks.
            file: CSV to which scores are added.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.tasks = list(tasks)
        self.scores = MetricsFile(file, EVALUATION_COLUMNS) if file is not None else None

    def __call__(  # type: ignore[override]
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: float = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """Score.

        Args:
            model: As it stands in training; its prompts are those of training.
            output_path: Not used.
            epoch: Not used.
            steps: The step, for the file.

        Returns:
            The main score of each task by ``<task>_<metric>``, and their ``mean``.
        """
        del output_path, epoch
        found = {task.metadata.name: self._score(model, task) for task in self.tasks}
        if self.scores is not None:
            rows = [
                {"step": steps, "task": task.metadata.name, "metric": task.metadata.main_score}
                | {"score": found[task.metadata.name]}
                for task in self.tasks
            ]
            self.scores.append(rows)
        named = {f"{t.metadata.name}_{t.metadata.main_score}": found[t.metadata.name] for t in self.tasks}
        return named | {"mean": sum(found.values()) / len(found)}

    def _score(self, model: SentenceTransformer, task: AbsTask) -> float:
        import mteb

        from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder

        held = model.prompts
        # MTEB warns about keys that are no tasks, as the names of subsets are, and takes none of them.
        model.prompts = {k: v for k, v in held.items() if k in ("query", "document") or k.endswith("-query")}
        try:
            # By the model's own prompts, which are those of training; `reasonembed run` reads the same ones.
            result = mteb.evaluate(
                ProtocolEncoder(model),
                [task],
                cache=None,
                co2_tracker=False,
                overwrite_strategy="always",
                encode_kwargs={"show_progress_bar": False},
                show_progress_bar=False,
            )
            return float(result.task_results[0].get_score())
        finally:
            model.prompts = held
