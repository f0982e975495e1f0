"""BEIR, both ways: tasks written as BEIR folders, BEIR folders as MTEB tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb.abstasks.task_metadata import TaskMetadata

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.retrieval.beir import folder_revision, read_folder, write_folder
from reasonembed_mteb.retrieval.rows import TaskRow, load_rows
from reasonembed_mteb.retrieval.task import ReasonTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.abstasks import AbsTask

__all__ = ["BeirTask", "beir_task", "export_beir", "only_split"]

# AbsTaskRetrieval's own name for the only subset of a task in one language.
_SUBSET = "default"
_CITATION = """@inproceedings{thakur2021beir,
  title = {{BEIR}: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models},
  author = {Thakur, Nandan and Reimers, Nils and R{\\"u}ckl{\\'e}, Andreas and Srivastava, Abhishek and
            Gurevych, Iryna},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year = {2021},
}"""


class BeirTask(ReasonTask):
    """A local BEIR folder as an MTEB task; `beir_task` makes them."""

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the folder.

        Args:
            num_proc: Unused; nothing is mapped.
            **kwargs: MTEB's further arguments; unused.

        Raises:
            DataError: If the folder is damaged, or has changed since the task was made.
        """
        if self.data_loaded:
            return
        folder = Path(self.row.path)
        data = read_folder(folder, self.row.split)
        if folder_revision(folder, self.row.split) != self.row.revision:
            msg = f"{folder} has changed since its task was made; start again"
            raise DataError(msg)
        self.dataset = {_SUBSET: {self.row.split: data}}  # type: ignore[dict-item]
        self.data_loaded = True


def beir_task(
    folder: Path | str,
    instruction: str | None = None,
    name: str | None = None,
    max_tokens: int = 8192,
    *,
    split: str = "test",
) -> BeirTask:
    """Return a local BEIR folder as an MTEB task, scored by nDCG@10 with exclusions before the cut.

    Args:
        folder: A BEIR folder; ``excluded.tsv`` in it is heeded. Without one a query's own id does not count,
            as in beir.
        instruction: One sentence, put before each query for models that take instructions; None is MTEB's own
            fallback for retrieval.
        name: The task's name; by default that of the folder with eight digits of a hash of its content, so
            that MTEB's cache never takes the results of one folder for those of another.
        max_tokens: Longest input in tokens; never above the model's own.
        split: Stem of the labels' file.

    Returns:
        A task for ``mteb.evaluate``; its data revision is the hash of the content.

    Raises:
        DataError: If a file is missing.
        ReasonEmbedError: If the instruction is empty, or the name is taken or cannot name a file.
    """
    path = Path(folder).expanduser().resolve()
    revision = folder_revision(path, split)
    if instruction is not None and not instruction.strip():
        msg = "the instruction is empty; give a sentence, or none at all"
        raise ReasonEmbedError(msg)
    if name is None:
        slug = re.sub(r"[^\w.-]+", "_", path.name) or "folder"
        name = f"BEIR-{slug}-{revision.split(':')[-1][:8]}"
    _check_name(name)
    row = _row(path, instruction or ReasonTask.abstask_prompt, name, max_tokens, split, revision)
    task: type[BeirTask] = type(
        name,
        (BeirTask,),
        {"row": row, "metadata": _metadata(row), "__module__": __name__, "__doc__": row.description},
    )
    return task()


def _check_name(name: str) -> None:
    import mteb

    if not re.fullmatch(r"[\w.()-]+", name):
        msg = f"the task name {name!r} may hold letters, digits and _ . - ( ) only: it names a file"
        raise ReasonEmbedError(msg)
    try:
        mteb.get_task(name)
    except KeyError:
        return
    msg = f"{name} is the name of an MTEB task; give the folder another"
    raise ReasonEmbedError(msg)


def _row(path: Path, instruction: str, name: str, max_tokens: int, split: str, revision: str) -> TaskRow:
    return TaskRow(
        name=name,
        subset=path.name,
        instruction=instruction,
        wanted="relevant documents",
        kind="beir",
        benchmark="",
        layout="beir",
        path=str(path),
        revision=revision,
        corpus_config="corpus",
        queries_config="queries",
        gold_column="qrels",
        split=split,
        main_score="ndcg_at_10",
        max_tokens=max_tokens,
        description=f"The local BEIR folder {path.name}.",
        reference="https://github.com/beir-cellar/beir",
        license="not specified",
        date=("2021-01-01", "2021-01-01"),
        domains=(),
        task_subtypes=(),
        annotations_creators="derived",
        sample_creation="found",
        citation=_CITATION,
        queries_path=str(path),
        queries_revision=revision,
    )


def _metadata(row: TaskRow) -> TaskMetadata:
    return TaskMetadata.model_validate(
        {
            "name": row.name,
            "description": row.description,
            "reference": row.reference,
            # The folder's name alone: where it lies is nobody else's business.
            "dataset": {"path": row.subset, "revision": row.revision},
            "type": "Retrieval",
            "category": "t2t",
            "eval_splits": [row.split],
            "eval_langs": ["eng-Latn"],
            "main_score": row.main_score,
            "prompt": {"query": row.instruction},
            "bibtex_citation": row.citation,
            "is_public": False,
        }
    )


def export_beir(task: AbsTask, folder: Path | str) -> dict[str, int]:
    """Write a retrieval task as a BEIR folder, whole or not at all.

    ``excluded.tsv`` holds the pairs that do not count; beir itself does not read it.

    Args:
        task: One of our tasks, or any MTEB retrieval task with texts, one subset and one split.
        folder: A new or empty folder.

    Returns:
        How many ``documents``, ``queries``, ``labels`` and ``excluded`` pairs the task has.

    Raises:
        DataError: If the folder is not empty, or a BEIR folder cannot hold the task.
    """
    name = task.metadata.name
    if not hasattr(task, "convert_v1_dataset_format_to_v2"):
        msg = f"{name} is a task of type {task.metadata.type}: only retrieval tasks can be BEIR folders"
        raise DataError(msg)
    was_loaded = task.data_loaded
    task.load_data()
    try:
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        data = only_split(task)
        write_folder(data, Path(folder), name)
        return {
            "documents": len(data["corpus"]),
            "queries": len(data["queries"]),
            "labels": sum(map(len, data["relevant_docs"].values())),
            "excluded": sum(map(len, data["excluded_ids"].values())),
        }
    finally:
        if not was_loaded:
            task.unload_data()


def only_split(task: Any) -> dict[str, Any]:  # noqa: ANN401 - AbsTaskRetrieval
    """Return a task's only split, with the exclusions that its scoring makes.

    Args:
        task: A retrieval task, loaded and in MTEB's newer layout (``convert_v1_dataset_format_to_v2``).

    Raises:
        DataError: If it has several splits, candidates for each query, or anything but texts.
    """
    name = task.metadata.name
    splits = [(subset, split) for subset, held in task.dataset.items() for split in held]
    if len(splits) != 1:
        listed = ", ".join(f"{subset}/{split}" for subset, split in splits)
        msg = f"{name} has {len(splits)} splits ({listed}); a BEIR folder holds one data set"
        raise DataError(msg)
    data = dict(task.dataset[splits[0][0]][splits[0][1]])
    _check_plain(data, name)
    excluded: Mapping[str, Sequence[str]] = data.get("excluded_ids") or {}
    if task.ignore_identical_ids:
        known = set(data["corpus"]["id"][:])
        own = [query for query in data["queries"]["id"][:] if query in known]
        excluded = dict(excluded) | {query: [*excluded.get(query, ()), query] for query in own}
    return data | {"excluded_ids": excluded}


def _check_plain(data: Mapping[str, Any], name: str) -> None:
    if data.get("top_ranked"):
        ours = [row.name for row in load_rows() if row.mteb_name == name and not row.is_rewritten]
        hint = f"; export {ours[0]}, which lists its exclusions instead" if ours else ""
        msg = f"{name} comes with candidates for each query, which a BEIR folder cannot hold{hint}"
        raise DataError(msg)
    if "text" not in data["corpus"].column_names or "text" not in data["queries"].column_names:
        msg = f"{name} is not made of texts; a BEIR folder holds nothing else"
        raise DataError(msg)
    if "instruction" in data["queries"].column_names:
        msg = f"{name} has an instruction for each query, which a BEIR folder cannot hold"
        raise DataError(msg)
