"""The configuration of a synthesis run: one TOML file, checked before anything is sent or written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.llm.sections import (
    Count,
    EndpointTable,
    Name,
    Section,
    Share,
    check_section,
    read_toml,
    refuse_keys,
    section_keys,
)
from reasonembed_mteb.synthesis.annotators import as_released

if TYPE_CHECKING:
    from reasonembed_mteb.endpoints.endpoint import Endpoint

# PROTOCOL section 7: the released scripts' weights of target lengths (words) and education levels.
WORD_WEIGHTS = {
    "<100": 1.0,
    "100-200": 2.0,
    "200-300": 3.0,
    "300-400": 3.0,
    "400-500": 2.0,
    ">=500": 1.0,
}
LEVEL_WEIGHTS = {"high school": 1.0, "college": 2.0, "PhD": 2.0}
# PROTOCOL section 6: (group size, queries per device), one subset per batch.
GROUPS = {"leetcode": [2, 64], "pony": [64, 2]}
OTHER_GROUP = [16, 8]

Layout = Literal["bright", "beir", "jsonl"]


class CorpusSection(Section):
    """Where the documents are.

    Attributes:
        layout: ``bright`` (a folder as ``hf download --repo-type dataset`` leaves it), ``beir``, ``jsonl``.
        path: Folder or file; relative to the configuration file.
        protect: Which benchmark documents never become sources: those of every subset that the data set
            holds, or only the subset's own.
    """

    layout: Layout = "bright"
    path: str | None = None
    protect: Literal["all", "own"] = "all"


class StartSection(Section):
    """Queries, pairs or labels of one's own: the subset begins with them, and the steps before are left out.

    Attributes:
        at: The step that it begins with: ``mine`` (queries, and positives where known), ``annotate``
            (candidates), ``reason`` (labels) or ``format`` (labels and reasoning queries).
        path: File or folder; relative to the configuration file.
        layout: ``jsonl``, ``beir`` or ``bright``.
        split: Of ``beir``, the one whose labels are taken (none: the queries alone); of ``bright``, that of
            the examples (none: the one of this name).
        scale: How labels in JSON Lines are meant: ``1-5``, or ``relevance``, where above 0 is relevant.
    """

    at: Literal["mine", "annotate", "reason", "format"] = "mine"
    path: str
    layout: Layout = "jsonl"
    split: str | None = None
    scale: Literal["1-5", "relevance"] = "1-5"


class SubsetSection(Section):
    """One subset: a name, a domain, and its own corpus where it has one.

    Attributes:
        name: File names and batches go by it; BRIGHT's spelling for a BRIGHT subset.
        domain: Which instructions the language model gets; the subset's own name by default.
        layout: As in the corpus table.
        path: As in the corpus table.
        queries: JSON Lines of benchmark queries (id, query, gold_ids, excluded_ids) to keep apart.
        start: Queries, pairs or labels of one's own to begin with.
    """

    name: Name
    domain: str | None = None
    layout: Layout | None = None
    path: str | None = None
    queries: str | None = None
    start: StartSection | None = None


class DomainSection(Section):
    """What the language model is told about a domain; every value is part of a sentence.

    Attributes:
        topic: ``about {topic}``.
        asks: What a query is: ``a post on a forum for gardeners``.
        wants: What a document gives that makes it relevant.
        instruction: The retrieval instruction before each query, one sentence.
    """

    topic: str = Field(min_length=1)
    asks: str = Field(min_length=1)
    wants: str = Field(min_length=1)
    instruction: str = Field(min_length=1)


class BudgetSection(Section):
    """What a run may use before it stops cleanly; prices and tokens are the endpoints' own.

    Attributes:
        max_cost: In the currency of the prices.
        max_tokens: Prompt and completion together.
    """

    max_cost: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Count | None = None


class AskingSection(Section):
    """A step that asks a language model.

    Attributes:
        endpoint: Which table of ``[endpoints]``.
        temperature: Sampling temperature.
        top_p: Nucleus.
        max_tokens: Longest answer; None leaves it to the endpoint, or to what a known annotator came with.
    """

    endpoint: str = "default"
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: Count | None = None


class SourcesSection(Section):
    """Which documents may become sources (PROTOCOL section 7).

    Attributes:
        min_characters: Shortest source.
        max_characters: Longest source.
        per_subset: At most so many.
        near_duplicate: MinHash similarity from which a second document is the same one.
    """

    min_characters: Annotated[int, Field(ge=0)] = 200
    max_characters: Count = 5000
    per_subset: Count = 10_000
    near_duplicate: Share = 0.8

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_characters > self.max_characters:
            msg = f"min_characters {self.min_characters} is above max_characters {self.max_characters}"
            raise ValueError(msg)
        return self


class CleanSection(AskingSection):
    """Ask whether a document is about the domain.

    Attributes:
        skip: Keep every document of the right length, and ask nothing.
        max_documents: Ask about at most so many a subset, drawn by the seed.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: bool = False
    max_documents: Count | None = None


class GenerateSection(AskingSection):
    """Write one query per source (PROTOCOL section 7: temperature 1.0, top_p 0.6).

    Attributes:
        word_weights: Weights of the target lengths.
        level_weights: Weights of the education levels.
        near_duplicate: MinHash similarity from which a second query is the same one.
        leak_similarity: MinHash similarity from which a query counts as a benchmark query.
        leak_words: So many words in a row shared with a benchmark query count as a leak too.
        length_factor: A query may be so many times shorter or longer than asked; 1000 keeps every length.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.6
    word_weights: dict[str, Annotated[float, Field(ge=0)]] = WORD_WEIGHTS
    level_weights: dict[str, Annotated[float, Field(ge=0)]] = LEVEL_WEIGHTS
    near_duplicate: Share = 0.8
    leak_similarity: Share = 0.7
    leak_words: Annotated[int, Field(ge=2)] = 13
    length_factor: Annotated[float, Field(ge=1, le=1000)] = 2.0

    @model_validator(mode="after")
    def _weights(self) -> Self:
        for given, allowed in ((self.word_weights, WORD_WEIGHTS), (self.level_weights, LEVEL_WEIGHTS)):
            for key in given:
                if key not in allowed:
                    raise ValueError(str(unknown_name("weight", key, allowed)) + f" Allowed: {list(allowed)}")
            if not sum(given.values()):
                msg = "all weights are 0; one at least must be above"
                raise ValueError(msg)
        return self


class MineSection(Section):
    """Search the whole corpus for candidates.

    Attributes:
        retriever: ``dense``, ``bm25``, or ``fused`` (both, by reciprocal rank).
        model: Any SentenceTransformer: hub name, MTEB name or directory (relative to the file).
        instruction_template: For models that MTEB does not know.
        top_k: Documents a query, before the source leaves.
        first_rank: Candidates start at this rank (1 is the best).
        last_rank: And end with this one.
        score_ceiling: Drop candidates that score above this multiple of the source's own score.
        batch_size: Texts encoded at a time.
        device: Such as ``cuda:0``.
        block: Documents (dense) between two points from which a killed run goes on.
        rrf_k: Constant of the fusion.
        language: Of the corpus, as MTEB spells it; BM25's stop words and stemmer go by it.
    """

    retriever: Literal["dense", "bm25", "fused"] = "dense"
    model: str | None = None
    instruction_template: str | None = None
    top_k: Count = 100
    first_rank: Count = 1
    last_rank: Count | None = None
    score_ceiling: Annotated[float, Field(gt=0)] | None = None
    batch_size: Count = 32
    device: str | None = None
    block: Count = 65_536
    rrf_k: Annotated[int, Field(ge=0)] = 60
    language: str = Field(default="eng-Latn", pattern=r"^[a-z]{3}-[A-Z][a-z]{3}$")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.retriever != "bm25" and self.model is None:
            msg = f'retriever = "{self.retriever}" needs a model; give model = "...", or retriever = "bm25"'
            raise ValueError(msg)
        if self.score_ceiling is not None and self.retriever == "fused":
            msg = "score_ceiling needs one retriever: fused ranks have no score to compare; use last_rank"
            raise ValueError(msg)
        last = self.last_rank if self.last_rank is not None else self.top_k
        if not self.first_rank <= last <= self.top_k:
            msg = f"ranks {self.first_rank} to {last} do not lie within 1 to top_k = {self.top_k}"
            raise ValueError(msg)
        return self


class AnnotateSection(AskingSection):
    """Judge each candidate from 1 to 5 (PROTOCOL section 7: temperature 0.7, top_p 0.95).

    Attributes:
        samples: Judgements a pair, of which the median counts.
        max_characters: Query and document together; longer pairs get -1 unasked.
        second_endpoint: Another annotator, to measure agreement with.
        second_queries: Queries a subset that it sees.
        gold: JSON Lines of labels (query_id, document_id, label) to measure agreement with.
    """

    samples: Annotated[int, Field(ge=1, le=99)] = 1
    max_characters: Count = 40_000
    second_endpoint: str | None = None
    second_queries: Count = 50
    gold: str | None = None


class ReasonSection(AskingSection):
    """Write the reasoning query.

    Attributes:
        skip: Leave it out; such rows train by plain InfoNCE only.
        words: Most words of the reasoning.
        train_model: The model to be trained, a hub name or a directory (relative to the file); its tokenizer
            says how much of a reasoning query training takes. Without it words alone are counted.
        train_tokens: Tokens that training takes of a reasoning query, its instruction included: the recipe's
            ``data.reasoning_tokens``.
        too_long: What becomes of longer reasoning: cut after the last sentence that fits, or dropped.
    """

    skip: bool = False
    words: Annotated[int, Field(ge=20)] = 400
    train_model: str | None = None
    train_tokens: Annotated[int, Field(ge=64)] = 4096
    too_long: Literal["trim", "drop"] = "trim"


class FormatSection(Section):
    """From labels to samples (PROTOCOL sections 6 and 7).

    Attributes:
        positive_from: Lowest label of a positive.
        negative_to: Highest label of a negative.
        min_positives: A sample needs so many.
        min_negatives: And so many.
        max_positives: Keep the best so many.
        max_negatives: Keep the hardest so many (mined first).
        need_reasoning: Drop samples without a reasoning query.
        groups: ``subset = [group size, queries a device]``.
        other_group: The same for every other subset.
    """

    positive_from: Annotated[int, Field(ge=1, le=5)] = 3
    negative_to: Annotated[int, Field(ge=1, le=5)] = 2
    min_positives: Count = 1
    min_negatives: Count = 1
    max_positives: Count | None = None
    max_negatives: Count | None = None
    need_reasoning: bool = False
    groups: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] = GROUPS
    other_group: Annotated[list[Count], Field(min_length=2, max_length=2)] = OTHER_GROUP

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.negative_to >= self.positive_from:
            msg = f"negative_to {self.negative_to} must be below positive_from {self.positive_from}"
            raise ValueError(msg)
        for side in ("positives", "negatives"):
            least, most = getattr(self, f"min_{side}"), getattr(self, f"max_{side}")
            if most is not None and most < least:
                msg = f"max_{side} {most} is below min_{side} {least}"
                raise ValueError(msg)
        for name, (group, _) in {**self.groups, "other_group": self.other_group}.items():
            if group < 2:
                msg = f"the group size of {name} is {group}; one positive and one negative make 2"
                raise ValueError(msg)
        return self


class Config(Section):
    """A whole file.

    Attributes:
        output: Folder of everything that is made; relative to the file.
        seed: Of every draw.
        subset: One table a subset.
        templates: A TOML file with prompt templates of your own, for any of the steps.
    """

    output: str = "remixer"
    seed: int = 42
    templates: str | None = None
    corpus: CorpusSection = CorpusSection()
    subset: Annotated[list[SubsetSection], Field(min_length=1)]
    domains: dict[str, DomainSection] = Field(default_factory=dict)
    endpoints: dict[str, EndpointTable] = Field(default_factory=dict)
    budget: BudgetSection = BudgetSection()
    sources: SourcesSection = SourcesSection()
    clean: CleanSection = CleanSection()
    generate: GenerateSection = GenerateSection()
    mine: MineSection = MineSection(retriever="bm25")
    annotate: AnnotateSection = AnnotateSection()
    reason: ReasonSection = ReasonSection()
    format: FormatSection = FormatSection()
    # Not part of the file: where it lies.
    folder: str = "."

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [subset.name for subset in self.subset]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"subset {', '.join(twice)} stands there twice; give each its own name"
            raise ValueError(msg)
        for name in self.format.groups:
            # The two of the protocol may stand there unused.
            if name not in names and name not in GROUPS:
                raise ValueError(f"format.groups: {unknown_name('subset', name, names)}")
        return self

    def path(self, given: str) -> Path:
        """Return a path of the file, which is relative to the file's folder."""
        return Path(self.folder) / Path(given).expanduser()

    @property
    def output_folder(self) -> Path:
        """Return the folder of everything that is made."""
        return self.path(self.output)

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint by name; one that serves a known annotator asks it as its authors do.

        Args:
            name: Its table under ``[endpoints]``.

        Raises:
            UnknownNameError: If there is none, with the nearest.
        """
        if name not in self.endpoints:
            error = unknown_name("endpoint", name, self.endpoints)
            error.args = (f"{error} Write a table [endpoints.{name}] with base_url and model.",)
            raise error
        return as_released(self.endpoints[name])


def read_config(file: Path) -> Config:
    """Read and check a configuration.

    Args:
        file: A TOML file; `examples/remixer.toml` shows every key.

    Returns:
        The configuration, with defaults filled in.

    Raises:
        ReasonEmbedError: If the file is missing, is not TOML, or a key or value is not allowed; the key
            is named, and the nearest known one.
    """
    content = read_toml(file, "examples/remixer.toml")
    if "folder" in content:
        raise ReasonEmbedError(f"{file}: {unknown_name('key', 'folder', section_keys(Config, _HIDDEN))}")
    refuse_keys(content, file)
    return check_section(Config, content | {"folder": str(file.resolve().parent)}, file, hidden=_HIDDEN)


# Fields that are no keys of the file.
_HIDDEN = ("folder",)
