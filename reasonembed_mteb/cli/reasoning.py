"""Scoring models that reason before they embed."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasonembed_mteb.cli.common import (
    ENGINE,
    FAILED,
    OUTPUT,
    SPEED,
    Benchmarks,
    Debug,
    Limit,
    Models,
    OutputFolder,
    Tasks,
    app,
    connect,
    say,
    seed_option,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions
    from reasonembed_mteb.llm.client import LLMClient
    from reasonembed_mteb.reasoning.generation import Decoding
    from reasonembed_mteb.reasoning.generators import GeneratorChoice
    from reasonembed_mteb.reasoning.running import ReasoningPlan
    from reasonembed_mteb.reasoning.sources import ReasoningSource

_REASONING, _SERVER = "Reasoning", "A server that reasons"
_NO_TOKENS = "--tokens says how much is generated: give it at least once, such as --tokens 256"


@app.command(name="reason-run")
def reason_run(
    model: Models,
    tokens: Annotated[
        list[int],
        typer.Option(
            help="Most tokens of a reasoning; repeatable; 0 is the model without any.",
            rich_help_panel=_REASONING,
        ),
    ] = [],  # noqa: B006 - typer reads the default
    benchmark: Benchmarks = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    reasonings: Annotated[
        list[Path],
        typer.Option(
            help="JSON Lines with reasoning, and query or id (and task); repeatable.",
            rich_help_panel=_REASONING,
        ),
    ] = [],  # noqa: B006
    rewritten: Annotated[
        list[str],
        typer.Option(
            help="BRIGHT's rewritten queries as reasonings, such as gpt4_reason; repeatable.",
            rich_help_panel=_REASONING,
        ),
    ] = [],  # noqa: B006
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What stands before a reasoning; {query} is the query with its instruction.",
            show_default="'{query}\\nReasoning: '",
            rich_help_panel=_REASONING,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=_REASONING)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest of this share.", rich_help_panel=_REASONING)
    ] = 1.0,
    seed: Annotated[int, seed_option("Of the draw.", _REASONING)] = 0,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible address; its model reasons.", rich_help_panel=_SERVER),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(help="The model's name there.", rich_help_panel=_SERVER)
    ] = None,
    question: Annotated[
        Path | None,
        typer.Option(help="File with what it is asked; {query} is the query.", rich_help_panel=_SERVER),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(help="Environment variable that holds the server's key.", rich_help_panel=_SERVER),
    ] = "OPENAI_API_KEY",
    price_in: Annotated[
        float | None, typer.Option(help="Price of a million prompt tokens.", rich_help_panel=_SERVER)
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million answer tokens.", rich_help_panel=_SERVER)
    ] = None,
    max_price: Annotated[
        float | None, typer.Option(help="Stop cleanly at this price.", rich_help_panel=_SERVER)
    ] = None,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="Ask again where requests failed for good.", rich_help_panel=_SERVER
        ),
    ] = False,
    generator: Annotated[
        str,
        typer.Option(
            help="Who generates where the model reasons itself: torch, or vllm (in this process).",
            rich_help_panel=ENGINE,
        ),
    ] = "torch",
    generator_option: Annotated[
        list[str],
        typer.Option(
            help="With --generator vllm: an argument of vllm.LLM, such as gpu_memory_utilization=0.4; "
            "repeatable.",
            rich_help_panel=ENGINE,
        ),
    ] = [],  # noqa: B006
    limit: Limit = None,
    output_folder: OutputFolder = Path("results"),
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would run: tokens, what is kept, price at most; sends and fetches nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    note: Annotated[
        str, typer.Option(help="What tells these scores from results.", rich_help_panel=OUTPUT)
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score again whatever is cached.", rich_help_panel=OUTPUT)
    ] = False,
    reasoning_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Queries generated for at a time.",
            show_default="16; vllm: 256",
            rich_help_panel=SPEED,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0.", rich_help_panel=SPEED)] = None,
    debug: Debug = False,
) -> None:
    """Score models that reason about each query before they embed it, filed apart from the models alone."""
    connect(debug)
    from reasonembed_mteb.evaluation import resolving, runner

    decodings = _decodings(tokens, temperature, top_p, seed)
    options = runner.RunOptions(
        output=output_folder,
        device=device,
        overwrite=overwrite,
        limit=limit,
        store=vector_store(output_folder, None),
        progress=shows_progress(debug),
    )
    answers = output_folder / "reasonings" / "answers"
    with ExitStack() as stack:
        if dry_run and not answers.is_dir():
            # A dry run leaves nothing behind.
            answers = Path(stack.enter_context(TemporaryDirectory()))
        client = _client(
            stack,
            endpoint,
            endpoint_model,
            answers,
            api_key_env=api_key_env,
            prices=(price_in, price_out),
            max_price=max_price,
            retry_errors=retry_errors,
        )
        plans = _plans(
            decodings,
            client,
            reasonings,
            rewritten,
            prompt,
            question,
            batch_size=reasoning_batch,
            generator=_generator(generator, generator_option),
        )
        tasks = resolving.resolve_tasks(benchmark, task)
        store = output_folder / "reasonings" / "generated"
        if dry_run:
            _show_dry_run(resolving.resolve_models(model), plans, store, tasks, options)
            return
        outcomes = [
            outcome
            for meta in resolving.resolve_models(model)
            for plan in plans
            for outcome in _scored(meta, plan, store, tasks, options, note)
        ]
    _finish(
        outcomes,
        benchmark,
        ["Main scores in %", *filter(None, [note]), *options.caveats],
        runner.output_folder(options),
    )


def _scored(
    meta: ModelMeta,
    plan: ReasoningPlan | None,
    store: Path,
    tasks: Sequence[AbsTask],
    options: RunOptions,
    note: str,
) -> list[Outcome]:
    """Score one model with one way of reasoning, and let go what it took before the next is loaded."""
    from reasonembed_mteb.reasoning.running import ReasoningModel

    with closing(ReasoningModel(meta, plan, store)) as model:
        return model.run(tasks, options, say, note)


def _show_dry_run(
    metas: Sequence[ModelMeta],
    plans: Sequence[ReasoningPlan | None],
    store: Path,
    tasks: Sequence[AbsTask],
    options: RunOptions,
) -> None:
    """Print what would be embedded and generated; exit with 1 if something could not be planned."""
    from reasonembed_mteb.cli import planning as shown
    from reasonembed_mteb.evaluation.plan import plan_models
    from reasonembed_mteb.evaluation.resolving import model_labels
    from reasonembed_mteb.reasoning.planning import ReasoningPlanner
    from reasonembed_mteb.reasoning.running import ReasoningModel

    for meta in metas:
        for plan in plans:
            # Refused as the run would be.
            ReasoningModel(meta, plan, store)
    failed, planner = False, ReasoningPlanner(tasks, store, options.limit)
    planned = plan_models(metas, tasks, options.limit)
    for meta, (found, errors), label in zip(metas, planned, model_labels(metas), strict=True):
        shown.show_plans(found, label)
        if found:
            shown.show_costs(meta, found, options, measure_speed=False)
        estimates = [one for plan in plans if plan is not None for one in planner.estimate(meta, plan, found)]
        shown.show_reasoning(estimates, label)
        for line in errors:
            say(f"FAILED {label} on {line}")
        failed = failed or bool(errors)
    if failed:
        raise typer.Exit(FAILED)


def _generator(name: str, options: Sequence[str]) -> GeneratorChoice:
    from reasonembed_mteb.files import toml_value
    from reasonembed_mteb.reasoning.generators import GeneratorChoice

    found = {}
    for option in options:
        key, sign, value = option.partition("=")
        if not sign or not key.strip().isidentifier():
            msg = f"--generator-option {option!r} must be of the form name=value, such as max_num_seqs=64"
            raise ReasonEmbedError(msg)
        found[key.strip()] = toml_value(value.strip())
    return GeneratorChoice(name, found)


def _decodings(tokens: Sequence[int], temperature: float, top_p: float, seed: int) -> list[Decoding | None]:
    """Return a decoding for each number of tokens; None for none."""
    from reasonembed_mteb.reasoning.generation import Decoding

    negative = [count for count in tokens if count < 0]
    if negative:
        msg = f"--tokens {negative[0]}: give 0 for no reasoning, or how many tokens it may have"
        raise ReasonEmbedError(msg)
    return [Decoding(count, temperature, top_p, seed) if count else None for count in dict.fromkeys(tokens)]


def _client(
    stack: ExitStack,
    url: str | None,
    name: str | None,
    folder: Path,
    *,
    api_key_env: str,
    prices: tuple[float | None, float | None],
    max_price: float | None,
    retry_errors: bool,
) -> LLMClient | None:
    if (url is None) != (name is None):
        msg = "--endpoint is an address and --endpoint-model a name there: give both, or neither"
        raise ReasonEmbedError(msg)
    if url is None or name is None:
        if max_price is not None or any(price is not None for price in prices):
            msg = "--max-price, --price-in and --price-out are for a server: give --endpoint too"
            raise ReasonEmbedError(msg)
        return None
    from reasonembed_mteb.llm.client import Budget, Endpoint, LLMClient

    price_in, price_out = prices
    endpoint = Endpoint(url, name, api_key_env=api_key_env, price_in=price_in, price_out=price_out)
    budget = Budget(max_cost=max_price)
    return stack.enter_context(LLMClient(endpoint, folder, budget, retry_errors=retry_errors))


def _plans(
    decodings: Sequence[Decoding | None],
    client: LLMClient | None,
    files: Sequence[Path],
    rewritten: Sequence[str],
    prompt: str | None,
    question: Path | None,
    *,
    batch_size: int | None,
    generator: GeneratorChoice,
) -> list[ReasoningPlan | None]:
    """Return every way of reasoning that was asked for; None for the model alone."""
    from reasonembed_mteb.prompts import unescape_template
    from reasonembed_mteb.reasoning.generators import TORCH, GeneratorChoice
    from reasonembed_mteb.reasoning.reasoner import PROMPT
    from reasonembed_mteb.reasoning.running import ReasoningPlan
    from reasonembed_mteb.reasoning.sources import (
        QUESTION,
        AskedReasonings,
        ReasoningFile,
        RewrittenQueries,
    )

    shared: dict[str, Any] = {
        "prompt": PROMPT if prompt is None else unescape_template(prompt),
        "batch_size": batch_size,
    }
    if question is not None and client is None:
        msg = "--question is what a server's model is asked: give --endpoint too"
        raise ReasonEmbedError(msg)
    asked = QUESTION if question is None else _text(question)
    plans: list[ReasoningPlan | None] = []
    for one in decodings:
        source = AskedReasonings(client, one, asked) if client is not None and one is not None else None
        own = generator if source is None else GeneratorChoice()
        plans.append(None if one is None else ReasoningPlan(one, source, **shared, generator=own))
    sources: list[ReasoningSource] = [*map(ReasoningFile, files), *map(RewrittenQueries, rewritten)]
    plans += [ReasoningPlan(None, source, **shared) for source in sources]
    if not plans:
        raise ReasonEmbedError(_NO_TOKENS + "; or --reasonings or --rewritten")
    if client is not None and not any(decodings):
        raise ReasonEmbedError(_NO_TOKENS)
    if generator.name != TORCH and not any(plan is not None and plan.source is None for plan in plans):
        msg = f"--generator {generator.name} generates where the model reasons itself: give --tokens, and no "
        raise ReasonEmbedError(msg + "--endpoint")
    return plans


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {file}: {getattr(error, 'strerror', None) or error}; give a text file"
        raise ReasonEmbedError(msg) from error


def _finish(outcomes: Sequence[Any], benchmarks: Sequence[str], title: Sequence[str], output: Path) -> None:
    """Print the scores, and exit with 1 if something failed."""
    from reasonembed_mteb.cli import show as console
    from reasonembed_mteb.evaluation.resolving import benchmark_tasks

    grouped = benchmark_tasks(benchmarks)
    groups = {group: [one.metadata.name for one in members] for group, members in grouped.items()}
    console.show_outcomes(outcomes, groups, "; ".join(title))
    say(f"Reasonings and their record: {output}; `reasonembed report {output}` shows both")
    for line in (failures := console.failure_lines(outcomes)):
        say(line)
    if failures:
        raise typer.Exit(FAILED)
