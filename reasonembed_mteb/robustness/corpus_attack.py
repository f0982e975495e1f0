"""An attack on a task's corpus from end to end: passages made, inserted, retrieved, kept and recorded."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.errors import DataError, ReasonEmbedError, unknown_name
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.poisoning_record import (
    IDS,
    TEXT,
    PoisoningOutcome,
    PoisoningRecord,
)
from reasonembed_mteb.evaluation.resolving import model_labels
from reasonembed_mteb.evaluation.runner import bars_shown
from reasonembed_mteb.evaluation.variants import innermost, load_variant, speed_up, with_store
from reasonembed_mteb.files import fingerprint, package_versions
from reasonembed_mteb.models.instructions import loaded_prefix
from reasonembed_mteb.reporting.bootstrap import bootstrap_interval
from reasonembed_mteb.retrieval.beir import write_folder
from reasonembed_mteb.retrieval.lengths import capped_length, sized_models
from reasonembed_mteb.retrieval.search import CHUNK_SIZE, document_loader, query_loader
from reasonembed_mteb.robustness.attacks import ATTACKS, GRADIENT, PLAIN, MakingQueries
from reasonembed_mteb.robustness.poisoned import (
    Retrieved,
    Target,
    check_cutoffs,
    find_target,
    judged,
    poisoned_data,
    poisoned_names,
    search_target,
    with_documents,
)
from reasonembed_mteb.robustness.poisoning import (
    MASK,
    NEAREST,
    AttackSize,
    Cluster,
    GradientSearch,
    Objective,
    SearchState,
    cluster_queries,
    first_tokens,
    read_state,
    search_key,
    usable_tokens,
)
from reasonembed_mteb.store.encoder import storable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mteb.models import ModelMeta
    from numpy.typing import NDArray
    from torch import Tensor

    from reasonembed_mteb.encoding.token_rows import TokenRowEncoder
    from reasonembed_mteb.robustness.poisoned import Run

logger = logging.getLogger(__name__)

# In the output folder: poisoned corpora, each attack's in a folder of its record's name, and searches.
FOLDER, SEARCHES = "poisoning", "searches"
_ASKED = ("id", "text")


@dataclass(frozen=True)
class PoisoningOptions:
    """How a corpus is attacked.

    Attributes:
        output: Output folder; passages and poisoned corpora lie in ``<output>/poisoning``.
        size: Of the search; its passages are the number of every attack.
        attacks: Some of `ATTACKS`.
        cutoffs: Depths at which a passage counts as found; None for the usual ones.
        device: Where models run; None lets torch choose.
        batch_size: Texts encoded at a time, where a model counts texts.
        batch_tokens: Tokens of a batch; None for the device's own.
        store: Folder of the embedding store; None computes every vector anew.
        progress: Show progress bars.
    """

    output: Path = Path("results")
    size: AttackSize = field(default_factory=AttackSize)
    attacks: Sequence[str] = ATTACKS
    cutoffs: Sequence[int] | None = None
    device: str | None = None
    batch_size: int = 32
    batch_tokens: int | None = None
    store: Path | None = None
    progress: bool = False

    def check(self) -> None:
        """Refuse what cannot be done, before anything is loaded.

        Raises:
            UnknownNameError: If an attack is not known.
            ReasonEmbedError: If there is none, or the size holds nothing.
        """
        self.size.check()
        for name in self.attacks:
            if name not in ATTACKS:
                raise unknown_name("attack", name, ATTACKS)
        if not self.attacks:
            msg = f"no attack is asked for; give some of {', '.join(ATTACKS)}"
            raise ReasonEmbedError(msg)

    @property
    def encode_kwargs(self) -> dict[str, Any]:
        """Options of encoding, as MTEB takes them."""
        return {"batch_size": self.batch_size, "show_progress_bar": self.progress}


@dataclass(frozen=True)
class _Made:
    """What an attack made.

    Attributes:
        passages: Texts by attack.
        ids: ``(A, T)`` the search's tokens, and what reads them; None without a search.
        state: How the search ended.
    """

    passages: dict[str, list[str]]
    ids: tuple[TokenRowEncoder, NDArray[np.int64]] | None
    state: SearchState | None


def poison_corpus(
    meta: ModelMeta,
    task: Any,  # noqa: ANN401 - AbsTaskRetrieval
    options: PoisoningOptions,
    *,
    makers: Any = None,  # noqa: ANN401 - AbsTaskRetrieval
    transfer: Sequence[ModelMeta] = (),
    say: Callable[[str], None] = logger.info,
) -> PoisoningRecord:
    """Make passages for a model, insert them into a task's corpus, and measure who retrieves them.

    Args:
        meta: The model that is attacked; the search needs its weights.
        task: A retrieval task with one split of texts.
        options: How.
        makers: A task over the same corpus whose queries make the passages; None for a half of the task's.
        transfer: Models that meet the same passages.
        say: Takes one line at a time about what happens.

    Returns:
        What was measured; keep it by `reasonembed_mteb.evaluation.poisoning_record.keep_poisoning`.

    Raises:
        ReasonEmbedError: If an option does not hold, the model has no gradient, or a model cannot search.
        DataError: If there are too few queries, or the corpus cannot be poisoned.
    """
    options.check()
    labels = model_labels([meta, *transfer])
    for one in (meta, *transfer):
        _check_searches(one)
    target = find_target(task, options.size.seed, makers)
    cutoffs = check_cutoffs(options.cutoffs, target.documents + options.size.passages)
    record = _planned(labels[0], target, options)
    folder = options.output / FOLDER / record.name
    with _loaded(meta, options) as model:
        record = replace(record, causes=_causes(model, target, options))
        made = _make(model, target, options, say)
        folders = _write(target, made, folder)
        outcomes = list(_measured(model, labels[0], target, made, cutoffs, options))
    for one, label in zip(transfer, labels[1:], strict=True):
        say(f"the passages meet {label}")
        with _loaded(one, options) as model:
            outcomes += _measured(model, label, target, _Made(made.passages, None, None), cutoffs, options)
    return replace(
        record,
        objective=None if made.state is None else (made.state.curve[0], made.state.curve[-1]),
        outcomes=tuple(outcomes),
        folders={name: str(one.relative_to(options.output)) for name, one in folders.items()},
        versions=package_versions(),
    )


def _planned(label: str, target: Target, options: PoisoningOptions) -> PoisoningRecord:
    """Return the record before anything is measured."""
    return PoisoningRecord(
        model=label,
        task=target.metadata.name,
        seed=options.size.seed,
        documents=target.documents,
        making=len(target.making["queries"]),
        attacked=len(target.attacked["queries"]),
        halves=target.halves,
        settings=asdict(options.size),
        objective=None,
        outcomes=(),
    )


def _causes(model: Any, target: Target, options: PoisoningOptions) -> str:  # noqa: ANN401
    """Return a hash of everything that decides what is measured."""
    data = target.metadata.dataset.get("revision")
    texts = [part["queries"][column][:] for part in (target.making, target.attacked) for column in _ASKED]
    return fingerprint(asdict(options.size), _told(model, target), data, texts)


def _told(model: Any, target: Target) -> list[Any]:  # noqa: ANN401
    """Return which weights a model has, what it is told before texts, and its length."""
    asked = [loaded_prefix(innermost(model), target.metadata, side) for side in ("query", "document")]
    return [model.mteb_model_meta.revision, asked, target.max_tokens]


def _check_searches(meta: ModelMeta) -> None:
    if "cross-encoder" in (meta.model_type or ()):
        msg = f"{meta.name} is a cross-encoder, which searches no corpus: give an embedding model"
        raise ReasonEmbedError(msg)


@contextlib.contextmanager
def _loaded(meta: ModelMeta, options: PoisoningOptions) -> Iterator[Any]:
    """Load a model as a run does; no progress bars where none are wanted."""
    with bars_shown(options.progress):
        model = load_variant(meta, device=options.device)
        speed_up(model, batch_tokens=options.batch_tokens, attn="auto", compile_layers="off")
        yield model if options.store is None else with_store(model, options.store, "auto")


def _make(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    target: Target,
    options: PoisoningOptions,
    say: Callable[[str], None],
) -> _Made:
    """Make the passages of every attack that was asked for."""
    rows = _token_rows(model, target, options) if GRADIENT in options.attacks else None
    vectors = _query_vectors(model, target, options)
    clusters = cluster_queries(vectors.numpy(), options.size)
    queries = MakingQueries(target.making["queries"]["text"][:], vectors.numpy(), clusters)
    passages = {name: PLAIN[name](queries) for name in options.attacks if name in PLAIN}
    if rows is None:
        return _Made(passages, None, None)
    state = _searched(model, rows, Objective(vectors, clusters), target, options, say)
    ids = np.asarray(state.best, dtype=np.int64)
    tokenizer = _sentence_transformer(model, target)[0].tokenizer
    texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    ordered = {GRADIENT: texts} | passages
    return _Made({name: ordered[name] for name in options.attacks}, (rows, ids), state)


def _sentence_transformer(model: Any, target: Target) -> Any:  # noqa: ANN401
    """Return the weights that a gradient is taken of."""
    from sentence_transformers import SentenceTransformer

    found = [one for one in sized_models(model) if isinstance(one, SentenceTransformer)]
    if len(found) != 1 or not storable(innermost(model)):
        name = model.mteb_model_meta.name
        msg = (
            f"{name} shows no gradient: the search needs the weights of one dense SentenceTransformer; for "
            f"{target.metadata.name} give such a model, and {name} by --transfer, or leave out the attack "
            f"{GRADIENT} (--attack {' --attack '.join(PLAIN)})"
        )
        raise ReasonEmbedError(msg)
    return found[0]


def _token_rows(model: Any, target: Target, options: PoisoningOptions) -> TokenRowEncoder:  # noqa: ANN401
    from reasonembed_mteb.encoding.token_rows import TokenRowEncoder

    inner = _sentence_transformer(model, target)
    prompt = loaded_prefix(innermost(model), target.metadata, "document")
    with capped_length(model, target.max_tokens):
        return TokenRowEncoder(inner, prompt or None, batch_tokens=options.batch_tokens)


def _encode(model: Any, target: Target, loader: Any, side: str, options: PoisoningOptions) -> Tensor:  # noqa: ANN401
    from mteb.types import PromptType

    with capped_length(model, target.max_tokens):
        vectors = model.encode(
            loader,
            task_metadata=target.metadata,
            hf_split=target.split,
            hf_subset=target.subset,
            prompt_type=PromptType(side),
            **options.encode_kwargs,
        )
    return torch.as_tensor(vectors).detach().float().cpu()


def _query_vectors(model: Any, target: Target, options: PoisoningOptions) -> Tensor:  # noqa: ANN401
    """Return the making queries' vectors, of unit length where the similarity is the cosine."""
    if not storable(innermost(model)):
        msg = (
            f"{model.mteb_model_meta.name} gives no dense vectors, by which queries are clustered: give a "
            "dense model, and this one by --transfer"
        )
        raise ReasonEmbedError(msg)
    loader = query_loader(target.making["queries"], encode_kwargs=options.encode_kwargs)
    vectors = _encode(model, target, loader, "query", options)
    inner = sized_models(model)
    linear = bool(inner) and getattr(inner[0], "similarity_fn_name", "cosine") == "dot"
    return vectors if linear else torch.nn.functional.normalize(vectors, dim=1)


def _searched(
    model: Any,  # noqa: ANN401
    rows: TokenRowEncoder,
    objective: Objective,
    target: Target,
    options: PoisoningOptions,
    say: Callable[[str], None],
) -> SearchState:
    """Search for the passages, or go on where an earlier call stopped."""
    size = options.size
    inner = _sentence_transformer(model, target)
    tokenizer = inner[0].tokenizer
    usable = usable_tokens(tokenizer, len(rows.table), special_tokens=size.special_tokens)
    search = GradientSearch(rows, objective, size, usable)
    texts = _first_texts(model, objective, target, options, tokenizer)
    first = [first_tokens(text, tokenizer, size, usable) for text in texts]
    clusters = [one.queries.tolist() for one in objective.clusters]
    queries = target.making["queries"]["text"][:]
    key = search_key(size, *_told(model, target), queries, clusters, first)
    # Each search has a file of its own, so that none takes the place of another.
    name = f"{model_labels([model.mteb_model_meta])[0]}-{target.metadata.name}-seed{size.seed}-{key[:12]}"
    file = options.output / FOLDER / SEARCHES / f"{file_name(name)}.json"
    state = read_state(file, key)
    if state is not None and state.iteration > size.iterations:
        shorter = file.with_name(f"{file.stem}-{size.iterations}.json")
        say(f"{file} is {state.iteration:,} iterations far and stays; this search is kept in {shorter}")
        file, state = shorter, read_state(shorter, key)
    if state is None:
        if file.exists():
            say(f"{file} is damaged: the search begins anew")
        state = search.begin(first)
    elif state.iteration == size.iterations:
        say(f"the search was finished before: its passages are taken from {file}")
    elif state.iteration:
        say(f"the search goes on after {state.iteration:,} of {size.iterations:,} iterations")
    return search.run(state, file, key, show_progress=options.progress)


def _first_texts(
    model: Any,  # noqa: ANN401
    objective: Objective,
    target: Target,
    options: PoisoningOptions,
    tokenizer: Any,  # noqa: ANN401 - of transformers
) -> list[str]:
    """Return what each passage begins as."""
    size = options.size
    if size.start == MASK:
        if tokenizer.mask_token is None or not size.special_tokens:
            msg = (
                "a passage can begin as [MASK] only where the tokenizer has that token and special tokens "
                f"may be taken; give another start, such as {NEAREST}"
            )
            raise ReasonEmbedError(msg)
        return [tokenizer.mask_token] * len(objective.clusters)
    if size.start == NEAREST:
        places = _nearest(model, objective, target, options)
    else:
        places = list(_relevant(objective.clusters, target, size.seed))
    rows = target.making["corpus"].select(places)
    (columns,) = document_loader(rows, encode_kwargs={"batch_size": max(1, len(places))})
    texts: list[str] = columns["text"]
    return texts


def _relevant(clusters: Sequence[Cluster], target: Target, seed: int) -> Iterator[int]:
    """Yield a random relevant document of each cluster's queries."""
    place_of = {name: place for place, name in enumerate(target.making["corpus"]["id"][:])}
    names = target.making["queries"]["id"][:]
    labels = target.making["relevant_docs"]
    for number, cluster in enumerate(clusters):
        found = {
            place_of[document]
            for query in cluster.queries
            for document, label in labels[names[query]].items()
            if label > 0 and document in place_of
        }
        if not found:
            msg = f"no query of cluster {number} has a relevant document in the corpus; begin as {NEAREST}"
            raise DataError(msg)
        yield int(np.random.default_rng([seed, number]).choice(sorted(found)))


def _nearest(model: Any, objective: Objective, target: Target, options: PoisoningOptions) -> list[int]:  # noqa: ANN401
    """Return the document nearest to the mean of each cluster; of equal ones the first."""
    means = torch.stack([objective.queries[one.queries].mean(dim=0) for one in objective.clusters])
    best, places = torch.full((len(means),), -torch.inf), torch.zeros(len(means), dtype=torch.int64)
    corpus = target.making["corpus"]
    for start in range(0, len(corpus), CHUNK_SIZE):
        chunk = corpus.select(range(start, min(start + CHUNK_SIZE, len(corpus))))
        loader = document_loader(chunk, encode_kwargs=options.encode_kwargs)
        vectors = _encode(model, target, loader, "document", options)
        scores, found = torch.as_tensor(model.similarity(means, vectors)).float().cpu().max(dim=1)
        better = scores > best
        best, places = torch.where(better, scores, best), torch.where(better, found + start, places)
    return [int(place) for place in places]


def _write(target: Target, made: _Made, folder: Path) -> dict[str, Path]:
    """Keep each attack's poisoned corpus, with the attacked queries, as a BEIR folder."""
    found = {}
    for attack, passages in made.passages.items():
        found[attack] = folder / attack
        data = poisoned_data(target.attacked, attack, passages)
        write_folder(data, found[attack], f"{target.metadata.name}, {attack}", replace=True)
    return found


def _measured(
    model: Any,  # noqa: ANN401
    label: str,
    target: Target,
    made: _Made,
    cutoffs: Sequence[int],
    options: PoisoningOptions,
) -> Iterator[PoisoningOutcome]:
    """Let a model search the clean corpus and each poisoned one."""
    clean_run = search_target(model, target, target.attacked, **options.encode_kwargs)
    clean = judged(clean_run, target.attacked)
    for attack, passages in made.passages.items():
        names = poisoned_names(attack, len(passages))
        data = poisoned_data(target.attacked, attack, passages)
        found = judged(search_target(model, target, data, **options.encode_kwargs), data, names)
        yield _outcome(label, attack, TEXT, clean, found, cutoffs)
        if attack == GRADIENT and made.ids is not None:
            run = with_documents(clean_run, _id_scores(model, target, made.ids, names, options))
            yield _outcome(label, attack, IDS, clean, judged(run, data, names), cutoffs)


def _id_scores(
    model: Any,  # noqa: ANN401
    target: Target,
    ids: tuple[TokenRowEncoder, NDArray[np.int64]],
    names: Sequence[str],
    options: PoisoningOptions,
) -> Run:
    """Return how the attacked queries score the search's tokens as they are."""
    rows, tokens = ids
    loader = query_loader(target.attacked["queries"], encode_kwargs=options.encode_kwargs)
    queries = _encode(model, target, loader, "query", options)
    scores = torch.as_tensor(model.similarity(queries, rows.vectors(tokens))).float().cpu().tolist()
    asked = target.attacked["queries"]["id"][:]
    return {query: dict(zip(names, row, strict=True)) for query, row in zip(asked, scores, strict=True)}


def _outcome(
    label: str, attack: str, fed: str, clean: Retrieved, found: Retrieved, cutoffs: Sequence[int]
) -> PoisoningOutcome:
    losses = [before - found.ndcg[query] for query, before in clean.ndcg.items()]
    interval = bootstrap_interval(losses)
    before, after = (float(np.mean(list(one.ndcg.values()))) for one in (clean, found))
    return PoisoningOutcome(
        model=label,
        attack=attack,
        fed=fed,
        asr={k: found.success(k) for k in cutoffs},
        before=before,
        after=after,
        loss=(interval.mean, interval.low, interval.high),
    )
