"""From names to MTEB's tasks and models, with variants; fetching both for machines that are offline later."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.models.engines import with_engine
from reasonembed_mteb.models.instructions import ABLATED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.models.engines import EngineChoice


BM25 = "mteb/baseline-bm25s"
_SHORT_NAMES = {"bm25": BM25, "bm25s": BM25}


def registered_name(name: str) -> str:
    """Return the name under which MTEB files a model that has a short name of ours, else the name itself.

    Args:
        name: As the user wrote it.
    """
    return _SHORT_NAMES.get(name, name)


def benchmark_tasks(benchmarks: Sequence[str]) -> dict[str, list[AbsTask]]:
    """Return the tasks of each benchmark.

    Args:
        benchmarks: Benchmark names, ours or MTEB's.

    Raises:
        UnknownNameError: If a name is not known; the nearest is named.
    """
    import mteb

    found = {}
    for name in benchmarks:
        try:
            found[name] = list(mteb.get_benchmark(name).tasks)
        except KeyError:
            known = [benchmark.name for benchmark in mteb.get_benchmarks()]
            raise unknown_name("benchmark", name, known) from None
    return found


@dataclass(frozen=True)
class BeirFolders:
    """Folders in BEIR's layout that are run as tasks.

    Attributes:
        folders: Each a task, named after the folder.
        split: The split of labels; None for ``test``.
        instruction: The sentence before each query, for models that take one.
    """

    folders: Sequence[Path] = ()
    split: str | None = None
    instruction: str | None = None

    def tasks(self) -> list[AbsTask]:
        """Return the folders' tasks.

        Raises:
            ReasonEmbedError: If there is no folder for a split or an instruction.
            DataError: If a folder cannot be read.
        """
        for option, given in (("--instruction", self.instruction), ("--beir-split", self.split)):
            if given is not None and not self.folders:
                msg = f"{option} goes with --beir: the other tasks have their own"
                raise ReasonEmbedError(msg)
        if not self.folders:
            return []
        from reasonembed_mteb.retrieval.beir_task import beir_task

        return [beir_task(one, self.instruction, split=self.split or "test") for one in self.folders]


def resolve_tasks(
    benchmarks: Sequence[str], tasks: Sequence[str], beir: BeirFolders | None = None
) -> list[AbsTask]:
    """Return MTEB tasks by benchmark and task names, each once, and those of BEIR folders.

    Args:
        benchmarks: Benchmark names, ours or MTEB's.
        tasks: Task names, ours or MTEB's.
        beir: Folders that are tasks too.

    Raises:
        UnknownNameError: If a name is not known; the nearest is named.
        ReasonEmbedError: If there is nothing to run, or a BEIR folder cannot be read.
    """
    folders = (beir or BeirFolders()).tasks()
    if not (benchmarks or tasks or folders):
        msg = "nothing to run: give -b BENCHMARK or -t TASK (`reasonembed tasks` lists them)"
        raise ReasonEmbedError(msg)
    import mteb

    grouped = benchmark_tasks(benchmarks)
    found = {task.metadata.name: task for group in grouped.values() for task in group}
    for name in tasks:
        try:
            found.setdefault(name, mteb.get_task(name))
        except KeyError:
            every = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]
            raise unknown_name("task", name, every) from None
    return [*found.values(), *folders]


@dataclass(frozen=True)
class Variants:
    """What is done to every model of a run; each variant is filed apart from the plain model.

    Attributes:
        truncate_dim: Keep the first dimensions of each vector.
        compress: MTEB's name of a compression, such as ``int8``.
        hybrid_with: Models whose rankings are fused with each model's.
        fusion: How: ``rrf``, ``dbsf`` or ``rsf``.
        ablate_instruction: Score each dense model a second time with nothing before its queries.
    """

    truncate_dim: int | None = None
    compress: str | None = None
    hybrid_with: Sequence[str] = ()
    fusion: str = "rrf"
    ablate_instruction: bool = False

    def of(self, models: Sequence[ModelMeta]) -> list[ModelMeta]:
        """Return the metadata of each model's variant.

        Args:
            models: MTEB metadata.

        Raises:
            ReasonEmbedError: If a variant does not fit a model.
        """
        from reasonembed_mteb.evaluation.variants import compressed, fused, truncated, without_instruction

        found = list(models)
        if self.ablate_instruction:
            found = [one for meta in found for one in (meta, without_instruction(meta))]
        if self.truncate_dim is not None:
            found = [truncated(meta, self.truncate_dim) for meta in found]
        if self.compress is not None:
            found = [compressed(meta, self.compress) for meta in found]
        if self.hybrid_with:
            others = resolve_models(self.hybrid_with)
            found = [fused([*others, meta], self.fusion) for meta in found]
        return found


def resolve_models(
    names: Sequence[str],
    *,
    filed_as: str | None = None,
    template: str | None = None,
    no_instruction: bool = False,
    variants: Variants | None = None,
    engine: EngineChoice | None = None,
) -> list[ModelMeta]:
    """Return MTEB metadata of models by name, each once.

    Args:
        names: See `resolve_model`.
        filed_as: ``org/name`` under which a local directory's results are filed; for one model only.
        template: See `resolve_model`.
        no_instruction: See `resolve_model`.
        variants: What is done to each.
        engine: Who computes the vectors of each; models that others are fused with keep torch.

    Raises:
        ReasonEmbedError: If a name is not known, or an option does not fit.
    """
    unique = list(dict.fromkeys(names))
    if filed_as is not None:
        if len(unique) != 1 or not Path(unique[0]).expanduser().is_dir():
            msg = "--name names the results of one local directory: give it with a single -m DIRECTORY"
            raise ReasonEmbedError(msg)
        if filed_as.count("/") != 1 or not all(filed_as.split("/")):
            msg = f"--name {filed_as!r} must be of the form org/name, such as my/model"
            raise ReasonEmbedError(msg)
    found = [
        resolve_model(n, filed_as=filed_as, template=template, no_instruction=no_instruction) for n in unique
    ]
    if engine is not None:
        found = [with_engine(meta, engine) for meta in found]
    return (variants or Variants()).of(found)


def resolve_beside(name: str, template: str | None) -> ModelMeta:
    """Return MTEB metadata of a model that others are compared with.

    Args:
        name: See `resolve_model`.
        template: That of the others: given to one that MTEB does not know too, and to no other.

    Raises:
        ReasonEmbedError: See `resolve_model`.
    """
    from mteb.models.model_implementations import MODEL_REGISTRY

    knows = registered_name(name) in MODEL_REGISTRY
    return resolve_model(name, template=None if knows else template)


def resolve_model(
    name: str, *, filed_as: str | None = None, template: str | None = None, no_instruction: bool = False
) -> ModelMeta:
    """Return MTEB metadata of a model by name.

    Args:
        name: A published checkpoint, any model of MTEB's registry, a hub name, or a local directory.
        filed_as: ``org/name`` under which a local directory's results are filed.
        template: Give each task's instruction in this template to a model that MTEB does not know.
        no_instruction: Give no instruction to a model that MTEB does not know.

    Raises:
        UnknownNameError: If it is none of these; the nearest is named.
        ReasonEmbedError: If instruction options are given for a model that has its own.
    """
    import mteb
    from mteb.models.model_implementations import MODEL_REGISTRY

    from reasonembed_mteb.models.zoo import local_meta, with_instruction

    registered = registered_name(name)
    if registered in MODEL_REGISTRY:
        if template is not None or no_instruction:
            msg = (
                f"MTEB's entry of {name} sets its own instructions, and another one makes another model: "
                "leave out --instruction-template and --no-instruction, or give a local directory"
            )
            raise ReasonEmbedError(msg)
        return mteb.get_model_meta(registered)
    folder = Path(name).expanduser()
    if folder.is_dir():
        meta = local_meta(folder, filed_as)
    elif name.startswith((".", "/", "~")) or ("/" in name and folder.parent.is_dir()):
        raise _no_directory(folder)
    elif name.count("/") != 1:
        raise unknown_name("model", name, [*MODEL_REGISTRY, *_SHORT_NAMES])
    else:
        meta = _hub_meta(name)
    return with_instruction(meta, template, none=no_instruction)


def _no_directory(folder: Path) -> ReasonEmbedError:
    parent = folder.parent
    beside = [child.name for child in parent.iterdir() if child.is_dir()] if parent.is_dir() else []
    nearest = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.5)
    hint = f"did you mean {parent / nearest[0]}?" if nearest else "give a directory that holds a saved model"
    return ReasonEmbedError(f"no model directory {folder}; {hint}")


def _hub_meta(name: str) -> ModelMeta:
    """Return metadata of a hub model that MTEB does not know."""
    import mteb
    from mteb.models.model_implementations import MODEL_REGISTRY

    try:
        meta = mteb.get_model_meta(name, fetch_from_hf=True)
    except hub_errors() as error:
        cached = _downloaded_meta(name)
        if cached is not None:
            return cached
        nearest = str(unknown_name("model", name, MODEL_REGISTRY))
        msg = f"{nearest} MTEB has no entry, and the hub cannot be asked ({type(error).__name__}): go online"
        raise ReasonEmbedError(msg) from error
    if meta.loader is None:
        raise unknown_name("model", name, MODEL_REGISTRY)
    return meta


def _downloaded_meta(name: str) -> ModelMeta | None:
    """Return metadata of a hub model that was downloaded before, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from reasonembed_mteb.models.zoo import local_meta

    try:
        # The folder is named by its commit.
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return local_meta(folder, name)


def model_labels(models: Sequence[ModelMeta]) -> list[str]:
    """Return a name for each model, told apart by revision where two share one.

    Args:
        models: MTEB metadata.
    """
    names = [_name(meta) for meta in models]
    return [
        f"{name} @{(meta.revision or 'newest')[:8]}" if names.count(name) > 1 else name
        for name, meta in zip(names, models, strict=True)
    ]


def _name(meta: ModelMeta) -> str:
    words = experiment_words(meta.experiment_kwargs or {})
    return f"{meta.name} ({words})" if words else meta.model_name_with_experiment or str(meta.name)


def experiment_words(chosen: Mapping[str, object]) -> str:
    """Return in words how a model was given its instruction, for labels; empty for MTEB's own name of it.

    Args:
        chosen: MTEB's ``experiment_kwargs``.
    """
    words = [
        f"--{option.replace('_', '-')}"
        for option in ("instruction_template", "no_instruction")
        if option in chosen
    ][:1]
    if chosen.get(ABLATED) and (words or len(chosen) == 1):
        words.append("without instruction")
    return ", ".join(words)


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises when it cannot reach the hub or finds nothing there."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Offline mode and missing entries are kinds of OSError; the other base belongs to the HTTP library,
    # which differs between versions of the client.
    return (OSError, HFValidationError, *HfHubHTTPError.__bases__)


def download(
    tasks: Sequence[AbsTask], models: Sequence[str], say: Callable[[str], None], folder: str | None = None
) -> None:
    """Fetch tasks' data and models' weights into the hub's local cache.

    Args:
        tasks: MTEB tasks, ours or MTEB's; each is loaded, and so checked, once.
        models: Hub names; a model of MTEB's registry comes at the commit that MTEB names.
        say: Takes one line at a time about what happens.
        folder: The hub cache for models, where it is not the usual one.

    Raises:
        ReasonEmbedError: If something cannot be fetched.
    """
    for task in tasks:
        task.load_data()
        task.unload_data()
        say(f"{task.metadata.name}: data is there")
    for model in models:
        say(f"{model}: {_fetch(model, folder)}")


def _fetch(model: str, folder: str | None) -> str:
    import huggingface_hub
    from mteb.models.model_implementations import MODEL_REGISTRY

    meta = MODEL_REGISTRY.get(model)
    revision = meta.revision if meta is not None else None
    try:
        return str(huggingface_hub.snapshot_download(model, revision=revision, cache_dir=folder))
    except hub_errors() as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = f"cannot fetch {model}: {cause}; check the name (org/name on the hub) and go online"
        raise ReasonEmbedError(msg) from error
