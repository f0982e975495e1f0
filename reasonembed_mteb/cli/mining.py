"""Mining negatives."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasonembed_mteb.cli.common import Debug, InstructionTemplate, app, connect, one_device, say, seed_option
from reasonembed_mteb.cli.show import show_table
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from reasonembed_mteb.retrieval.reranker import Reranker

_CROSS_ENCODER, _ANNOTATOR = "cross-encoder", "annotator"
KINDS = (_CROSS_ENCODER, "rerank", "score", "tei", _ANNOTATOR)


@app.command()
def mine(
    pairs: Annotated[
        str,
        typer.Option(
            help="Queries with positives: rows as for `train`, a BEIR or BRIGHT folder, a hub name."
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Embedding model: name or directory; or bm25.")],
    output: Annotated[Path, typer.Option(help="JSON Lines to write; the record goes next to it.")],
    corpus: Annotated[
        str | None, typer.Option(help="Documents to mine in, where --pairs has no corpus of its own.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Of BRIGHT's layout, or config on the hub.")] = None,
    split: Annotated[str, typer.Option(help="Of a BEIR folder or on the hub.")] = "train",
    negatives: Annotated[int, typer.Option(help="Negatives a query, at most.")] = 7,
    range_min: Annotated[int, typer.Option(help="Pass over so many of the best candidates.")] = 0,
    range_max: Annotated[int | None, typer.Option(help="Candidates end with this rank.")] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option(help="A negative scores this share less than the worst positive, such as .05."),
    ] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="The same as a difference.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of a negative.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Highest score of a negative.")] = None,
    sampling: Annotated[str, typer.Option(help="top or random.")] = "top",
    seed: Annotated[int, seed_option("Of random sampling and of an annotator.")] = 42,
    reranker: Annotated[
        str | None,
        typer.Option(
            help="Margins and limits go by its scores: cross-encoder, or a model on --reranker-url."
        ),
    ] = None,
    reranker_kind: Annotated[str, typer.Option(help=", ".join(KINDS) + ".")] = _CROSS_ENCODER,
    reranker_url: Annotated[str | None, typer.Option(help="Server of the reranker.")] = None,
    reranker_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens of a pair (cross-encoder).")
    ] = None,
    reranker_instruction: Annotated[str | None, typer.Option(help="Put before its queries.")] = None,
    domain: Annotated[
        str | None,
        typer.Option(help="What an annotator is told of the queries: one of BRIGHT's; else nothing."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the server's key.")
    ] = "OPENAI_API_KEY",
    max_tokens_used: Annotated[
        int | None, typer.Option(help="Stop cleanly once the server has counted so many tokens.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="For queries that have none of their own.")] = None,
    instruction_template: InstructionTemplate = None,
    store: Annotated[
        Path | None, typer.Option(help="Embedding store to use and to keep; by default none is kept.")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Write pos_scores and neg_scores too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts encoded at a time.")] = 32,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a text.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0.")] = None,
    debug: Debug = False,
) -> None:
    """Mine hard negatives for queries that have positives; the file trains with `reasonembed train`."""
    connect(debug)
    from reasonembed_mteb.evaluation.resolving import BM25, resolve_model
    from reasonembed_mteb.retrieval.lexical import LexicalModel
    from reasonembed_mteb.training.mined_file import mine_file
    from reasonembed_mteb.training.negatives import MiningRules
    from reasonembed_mteb.training.pairs import read_pairs

    rules = MiningRules(
        negatives=negatives,
        range_min=range_min,
        range_max=range_max,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        min_score=min_score,
        max_score=max_score,
        sampling=sampling,
        seed=seed,
    )
    device = one_device(device)
    meta = resolve_model(model, template=instruction_template)
    read = read_pairs(pairs, corpus=corpus, subset=subset, split=split, instruction=instruction)
    with ExitStack() as stack:
        chosen = _reranker(
            stack,
            reranker,
            reranker_kind,
            url=reranker_url,
            api_key_env=api_key_env,
            folder=output.with_name(f".{output.name}.answers"),
            budget=max_tokens_used,
            max_length=reranker_length,
            instruction=reranker_instruction,
            domain=domain,
            seed=seed,
            device=device,
        )
        record = mine_file(
            read,
            output,
            LexicalModel() if meta.name == BM25 else meta.load_model(device=device),
            rules,
            reranker=chosen,
            store=store,
            with_scores=scores,
            batch_size=batch_size,
            max_length=max_length,
            say=say,
            show_progress=True,
        )
    show_table(["", "count"], [[k, f"{v:,}"] for k, v in record["counts"].items()], f"Mined into {output}")


def _reranker(stack: ExitStack, name: str | None, kind: str, **options: Any) -> Reranker | None:
    """Make the reranker that was asked for; what it keeps open is closed with the stack."""
    if kind not in KINDS:
        raise unknown_name("reranker kind", kind, KINDS)
    url = options["url"]
    if name is None:
        if url is not None or kind != _CROSS_ENCODER:
            msg = "--reranker-url and --reranker-kind need a model: give --reranker NAME"
            raise ReasonEmbedError(msg)
        return None
    if kind == _CROSS_ENCODER:
        if url is not None:
            msg = f"--reranker-url is for a server: give --reranker-kind too, one of {', '.join(KINDS[1:])}"
            raise ReasonEmbedError(msg)
        from reasonembed_mteb.models.cross_encoder import CrossEncoderReranker

        keys = ("device", "max_length", "instruction")
        return CrossEncoderReranker(name, **{key: options[key] for key in keys})
    if url is None:
        msg = f"the reranker kind {kind} asks a server: give its address by --reranker-url"
        raise ReasonEmbedError(msg)
    return _served(stack, name, kind, **options)


def _served(stack: ExitStack, name: str, kind: str, **options: Any) -> Reranker:
    from reasonembed_mteb.llm.client import Budget, Endpoint, LLMClient

    endpoint = Endpoint(options["url"], name, api_key_env=options["api_key_env"])
    budget = Budget(max_tokens=options["budget"])
    if kind != _ANNOTATOR:
        from reasonembed_mteb.llm.reranking import EndpointReranker

        served = EndpointReranker(
            endpoint, options["folder"], api=kind, instruction=options["instruction"], budget=budget
        )
        return stack.enter_context(served)
    from reasonembed_mteb.synthesis.annotators import as_released, known_annotator
    from reasonembed_mteb.synthesis.config import AnnotateSection
    from reasonembed_mteb.synthesis.grading import ANY_DOMAIN, GradingReranker
    from reasonembed_mteb.synthesis.prompts import bright_domains, load_prompts, prompt_for

    domains, domain = bright_domains(), options["domain"]
    if domain is not None and domain not in domains:
        raise unknown_name("domain", domain, domains)
    client = stack.enter_context(LLMClient(as_released(endpoint), options["folder"], budget))
    told = ANY_DOMAIN if domain is None else domains[domain]
    # The released annotator has a length and levels of its own.
    known = known_annotator(name)
    section = AnnotateSection(max_tokens=None if known is None else known.max_tokens)
    return GradingReranker(
        client, prompt_for(load_prompts()["annotate"], name), told, section, options["seed"]
    )
