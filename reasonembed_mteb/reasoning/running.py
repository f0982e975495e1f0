"""Models that reason before they embed, as MTEB models of their own, and what a run of them leaves behind."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.chapter_files import chapter_files
from reasonembed_mteb.evaluation.kinds import REASONING
from reasonembed_mteb.evaluation.reasoning_record import (
    ITSELF,
    NONE,
    REASONING_CHAPTER,
    ReasonedTask,
    ReasoningRun,
    read_reasoning_run,
    reasoning_run_name,
    same_system,
    write_reasoning_run,
)
from reasonembed_mteb.evaluation.runner import output_folder
from reasonembed_mteb.evaluation.runner import run as run_models
from reasonembed_mteb.files import fingerprint, json_line, write_whole
from reasonembed_mteb.reasoning.encoder import ReasoningEncoder, ReasoningFigures
from reasonembed_mteb.reasoning.generators import TORCH, GeneratorChoice
from reasonembed_mteb.reasoning.latents import latent_ids
from reasonembed_mteb.reasoning.reasoner import PROMPT, SelfReasoning
from reasonembed_mteb.reasoning.sources import check_prompt
from reasonembed_mteb.reasoning.store import remember_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions
    from reasonembed_mteb.reasoning.generation import Decoding
    from reasonembed_mteb.reasoning.sources import ReasoningSource

# Where a run's reasonings lie in an output folder, besides the store of those that were generated.
_FOLDER = "reasonings"


@dataclass(frozen=True)
class ReasoningPlan:
    """One way of reasoning before a model embeds.

    Attributes:
        decoding: How the model itself, or a server's, chooses tokens; None where reasonings are given.
        source: Who wrote them; None for the model itself.
        prompt: What stands before a reasoning, with ``{query}``.
        batch_size: Queries generated for at a time; None for the generator's own.
        generator: Which engine generates, where the model itself reasons.
    """

    decoding: Decoding | None = None
    source: ReasoningSource | None = None
    prompt: str = PROMPT
    batch_size: int | None = None
    generator: GeneratorChoice = field(default_factory=GeneratorChoice)

    @property
    def name(self) -> str:
        """Which source this is: in names, and in a record."""
        if self.source is not None:
            return self.source.name
        if self.decoding is None:
            return NONE
        engine = "" if self.generator.name == TORCH else f"-{self.generator.name}"
        return f"{ITSELF}-{self.decoding.max_tokens}{engine}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the reasonings, as JSON."""
        if self.source is not None:
            return {"prompt": self.prompt, **self.source.identity}
        own = asdict(self.decoding) if self.decoding is not None else None
        engine = self.generator.identity
        return {"prompt": self.prompt, "itself": own, **({"engine": engine} if engine else {})}

    def check(self) -> None:
        """Refuse a plan that cannot be carried out.

        Raises:
            ReasonEmbedError: If there is neither a decoding nor a source, the prompt has no place, or the
                generator is not installed or has nothing to do.
        """
        check_prompt(self.prompt)
        if self.decoding is None and self.source is None:
            msg = "nothing reasons: give a decoding for the model itself, or a source of reasonings"
            raise ReasonEmbedError(msg)
        if self.decoding is not None:
            self.decoding.check()
        if self.source is not None and self.generator.name != TORCH:
            msg = (
                f"--generator {self.generator.name} is for a model that reasons itself, and here "
                f"{self.source.name} does: leave it out"
            )
            raise ReasonEmbedError(msg)
        # Before anything is loaded: what is not installed is missed here.
        _ = self.generator.identity


class ReasoningModel:
    """A model with one way of reasoning: its metadata for a run, and the record of it."""

    def __init__(self, base: ModelMeta, plan: ReasoningPlan | None, store: Path) -> None:
        """Describe it; nothing is loaded yet.

        Args:
            base: The model that embeds.
            plan: How it reasons; None for the model alone.
            store: Folder of the reasonings that are generated.

        Raises:
            ReasonEmbedError: If the model is not dense, or the plan cannot be carried out.
        """
        if "dense" not in (base.model_type or ()):
            kinds = ", ".join(base.model_type or ["unknown"])
            msg = f"reasoning goes before dense models, and {base.name} is {kinds}"
            raise ReasonEmbedError(msg)
        if plan is not None:
            plan.check()
        self._base, self._plan, self._store = base, plan, store
        # Kept between tasks, each of which is a run of its own.
        self._loaded: Any = None

    @property
    def meta(self) -> ModelMeta:
        """MTEB's metadata, under a name and a revision of its own."""
        if self._plan is None:
            return self._base.model_copy(update={"loader": self._loader_of_base()})
        short = str(self._base.name).rsplit("/", 1)[-1]
        return self._base.model_copy(
            update={
                "name": f"{REASONING}/{short}-{self._plan.name}",
                "revision": self._revision(self._base.revision),
                "loader": self._loader(self._plan),
                "loader_kwargs": {**(self._base.loader_kwargs or {}), "reasoning": self._plan.identity},
            }
        )

    def _revision(self, base: str | None) -> str | None:
        plan = self._plan
        return (
            None if base is None or plan is None else fingerprint(str(self._base.name), base, plan.identity)
        )

    def _loader_of_base(self) -> Any:  # noqa: ANN401 - mteb's loader
        loader: Any = self._base.loader

        def load_plain(name: str, revision: str | None = None, **options: Any) -> Any:  # noqa: ANN401
            if self._loaded is None:
                self._loaded = loader(name, revision=revision, **options)
            return self._loaded

        return load_plain

    def _loader(self, plan: ReasoningPlan) -> Any:  # noqa: ANN401 - mteb's loader
        def load_reasoning(
            name: str, revision: str | None = None, *, device: str | None = None, **_: Any
        ) -> ReasoningEncoder:
            from reasonembed_mteb.evaluation.variants import load_variant

            del name, revision
            if self._loaded is None:
                inner = load_variant(self._base, device=device)
                reasoner = plan.source or self._reasoning_itself(inner, plan)
                self._loaded = ReasoningEncoder(inner, reasoner, prompt=plan.prompt)
                self._loaded.resolved_revision = self._revision(inner.mteb_model_meta.revision)
            # A run puts a store before what embeds documents, each time anew.
            self._loaded.wrapped_models = [self._loaded.base]
            found: ReasoningEncoder = self._loaded
            return found

        return load_reasoning

    def _reasoning_itself(self, inner: Any, plan: ReasoningPlan) -> SelfReasoning:  # noqa: ANN401
        assert plan.decoding is not None
        path = (self._base.loader_kwargs or {}).get("path")
        where = {} if path else {"revision": inner.mteb_model_meta.revision}
        found = SelfReasoning(
            inner.model,
            str(path or self._base.name),
            plan.decoding,
            self._store,
            prompt=plan.prompt,
            batch_size=plan.batch_size,
            generator=plan.generator,
            **where,
        )
        remember_model(self._store, base_key(self._base), found.identity)
        return found

    def run(
        self,
        tasks: Sequence[AbsTask],
        options: RunOptions,
        say: Callable[[str], None],
        note: str = "",
    ) -> list[Outcome]:
        """Score tasks, and leave each one's reasonings and record in the output folder as it ends.

        Args:
            tasks: MTEB tasks.
            options: How to run.
            say: Takes one line at a time about what happens.
            note: What tells the scores from results; the options' own caveats are added.

        Returns:
            One outcome a task.
        """
        output = output_folder(options)
        found = []
        for task in tasks:
            # A score without what its reasonings came to is half a result; none is generated again for it.
            missing = self._plan is not None and not self._is_recorded(output, task.metadata.name)
            chosen = replace(options, overwrite=options.overwrite or missing)
            (outcome,) = run_models([self.meta], [task], chosen, say)
            found.append(outcome)
            if outcome.score is not None and (self._plan is None or not outcome.cached):
                self._leave(output, outcome, "; ".join(filter(None, [note, *options.caveats])))
        return found

    def close(self) -> None:
        """Let go what was loaded, and an engine's memory."""
        loaded, self._loaded = self._loaded, None
        if isinstance(loaded, ReasoningEncoder):
            loaded.close()

    def _is_recorded(self, output: Path, task: str) -> bool:
        wanted = self._record("")
        for file in chapter_files(output, REASONING_CHAPTER):
            # A damaged record records nothing; it is written anew.
            with contextlib.suppress(DataError):
                run = read_reasoning_run(file)
                if same_system(run, wanted):
                    return task in run.tasks
        return False

    def _leave(self, output: Path, outcome: Outcome, note: str) -> None:
        run, figures = self._record(note), ReasoningFigures()
        if isinstance(self._loaded, ReasoningEncoder):
            figures = self._loaded.figures.pop(outcome.task)
            folder = output / _FOLDER / file_name(reasoning_run_name(run))
            _write(folder / file_name(outcome.task), outcome.task, figures)
        write_reasoning_run(output, replace(run, tasks={outcome.task: _reasoned(outcome, figures)}))

    def _record(self, note: str) -> ReasoningRun:
        from reasonembed_mteb.evaluation.plan import load_tokenizer

        inner = self._loaded.base if isinstance(self._loaded, ReasoningEncoder) else self._loaded
        meta = self._base if inner is None else inner.mteb_model_meta
        plan, tokenizer = self._plan, load_tokenizer(self._base)
        engine = plan.identity.get("engine") if plan is not None else None
        return ReasoningRun(
            base=meta.model_name_with_experiment or str(meta.name),
            base_revision=str(meta.revision),
            system=str(self.meta.name),
            latents=len(latent_ids(tokenizer)) if tokenizer is not None else 0,
            source=NONE if plan is None else ITSELF if plan.source is None else plan.source.name,
            max_tokens=0 if plan is None else plan.decoding.max_tokens if plan.decoding else None,
            decides={} if plan is None else json.loads(json.dumps(plan.identity)),
            note=note,
            engine=" ".join(str(engine[key]) for key in ("name", "version")) if engine else "",
        )


def base_key(base: ModelMeta) -> str:
    """Return a name for a model and its revision, as far as it was given, in a store of reasonings.

    Args:
        base: The model that embeds.
    """
    return fingerprint(str(base.name), base.revision)


def _write(folder: Path, task: str, figures: ReasoningFigures) -> None:
    """Write a task's reasonings and, apart from them, the seconds: no two runs take the same time."""
    rows = [
        {
            "task": task,
            "id": name,
            "stop": one.stop,
            "tokens": one.tokens,
            "prompt_tokens": one.prompt_tokens,
            "reasoning": one.text,
        }
        for name, one in figures.reasonings
    ]
    write_whole(folder / "reasonings.jsonl", "".join(map(json_line, rows)))
    times = [{"id": name, "seconds": round(one.seconds, 6)} for name, one in figures.reasonings]
    write_whole(folder / "seconds.jsonl", "".join(map(json_line, times)))


def _reasoned(outcome: Outcome, figures: ReasoningFigures) -> ReasonedTask:
    held = [one for _, one in figures.reasonings]
    return ReasonedTask(
        score=float(outcome.score or 0.0),
        metric=outcome.metric,
        queries=len(held),
        tokens=sum(one.tokens for one in held),
        stops=figures.stops,
        seconds=sum(one.seconds for one in held) + figures.embedding_seconds,
        cut=figures.cut,
    )
