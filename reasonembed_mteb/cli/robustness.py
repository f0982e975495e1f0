"""Query variations: what they cost a model, and how its document vectors lie."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import (
    FAILED,
    BatchSize,
    BatchTokens,
    BeirInstruction,
    BeirTasks,
    Benchmarks,
    Debug,
    Devices,
    InstructionTemplate,
    Limit,
    Models,
    NoInstruction,
    OutputFolder,
    Overwrite,
    Store,
    Tasks,
    app,
    connect,
    say,
    show,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.robustness.wordnet import WordNet

logger = logging.getLogger(__name__)

_VARIATIONS, _PARAPHRASES = "Variations", "Paraphrases"


@app.command()
def robustness(
    model: Models,
    benchmark: Benchmarks = [],  # noqa: B006 - typer reads the default
    task: Tasks = [],  # noqa: B006
    beir: BeirTasks = [],  # noqa: B006
    instruction: BeirInstruction = None,
    instruction_template: InstructionTemplate = None,
    no_instruction: NoInstruction = False,
    limit: Limit = None,
    variation: Annotated[
        list[str],
        typer.Option(
            help="misspelling, reordering, synonyms, naturalising, keywords, shuffle, paraphrase; repeat it.",
            show_default="the first five",
            rich_help_panel=_VARIATIONS,
        ),
    ] = [],  # noqa: B006
    strength: Annotated[
        str,
        typer.Option(
            help="study: a tenth of the words, at least one; or share=0.2.", rich_help_panel=_VARIATIONS
        ),
    ] = "study",
    seed: Annotated[
        list[int],
        typer.Option(
            help="Of the draws; repeatable.",
            show_default="the study's 1999, 5, 27, 2016, 2026",
            rich_help_panel=_VARIATIONS,
        ),
    ] = [],  # noqa: B006
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="As the study: vary code and formulas too, leave synonyms in their base form.",
            rich_help_panel=_VARIATIONS,
        ),
    ] = False,
    wordnet: Annotated[
        Path | None,
        typer.Option(
            help="WordNet's folder (Debian's, npm's, nltk's or Princeton's), for synonyms.",
            show_default="$REASONEMBED_WORDNET, or where it is installed",
            rich_help_panel=_VARIATIONS,
        ),
    ] = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(
            help='JSON Lines with "query" and "paraphrase"; adds that variation.',
            rich_help_panel=_PARAPHRASES,
        ),
    ] = None,
    paraphrase_url: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible endpoint that paraphrases; adds that variation.",
            rich_help_panel=_PARAPHRASES,
        ),
    ] = None,
    paraphrase_model: Annotated[
        str | None, typer.Option(help="The model's name there.", rich_help_panel=_PARAPHRASES)
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with its key.", rich_help_panel=_PARAPHRASES)
    ] = "OPENAI_API_KEY",
    geometry: Annotated[
        bool,
        typer.Option(
            "--geometry",
            help="Also measure how the document vectors of dense models lie.",
            rich_help_panel=_VARIATIONS,
        ),
    ] = False,
    vectors: Annotated[
        int,
        typer.Option(
            min=2, help="With --geometry: documents drawn of a larger corpus.", rich_help_panel=_VARIATIONS
        ),
    ] = 100_000,
    output_folder: OutputFolder = Path("results"),
    overwrite: Overwrite = False,
    batch_size: BatchSize = None,
    batch_tokens: BatchTokens = None,
    device: Devices = None,
    store: Store = None,
    debug: Debug = False,
) -> None:
    """Measure what variations of the queries cost a model: misspelling, reordering, synonyms and more."""
    connect(debug)
    from reasonembed_mteb.evaluation import resolving, runner
    from reasonembed_mteb.robustness.geometry import with_vectors
    from reasonembed_mteb.robustness.profile import PROFILE, ProfileSettings, robustness_profile
    from reasonembed_mteb.robustness.variations import SEEDS

    asked = paraphrases is not None or paraphrase_url is not None
    kinds = _kinds(variation or list(PROFILE), asked=asked)
    share = _share(strength)
    tasks = resolving.resolve_tasks(benchmark, task, resolving.BeirFolders(beir, None, instruction))
    metas = resolving.resolve_models(model, template=instruction_template, no_instruction=no_instruction)
    options = runner.RunOptions(
        output=output_folder,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        limit=limit,
        store=vector_store(output_folder, store),
        batch_tokens=batch_tokens,
        progress=shows_progress(debug),
    )
    options.check()
    measured = with_vectors(metas) if geometry else []
    settings = ProfileSettings(
        kinds=kinds,
        seeds=tuple(seed) or SEEDS,
        share=share,
        official=official,
        synonyms=_wordnet(wordnet) if "synonyms" in kinds else None,
        paraphrases=(
            _paraphrases(tasks, options, paraphrases, paraphrase_url, paraphrase_model, api_key_env)
            if "paraphrase" in kinds
            else None
        ),
    )
    report = robustness_profile(metas, tasks, options, settings, say)
    failures = list(report.failures)
    failures += _measure(measured, tasks, options, vectors)
    _show(runner.output_folder(options))
    for meta in metas:
        if geometry and meta not in measured:
            say(f"{meta.name} has no dense vectors, so that their geometry is left out")
    for line in failures:
        say(f"FAILED {line}")
    if failures:
        raise typer.Exit(FAILED)


def _kinds(given: Sequence[str], *, asked: bool) -> tuple[str, ...]:
    """Return the kinds of variation; paraphrases where their source is given."""
    if "paraphrase" in given and not asked:
        msg = "the variation paraphrase needs --paraphrases FILE, or --paraphrase-url and --paraphrase-model"
        raise ReasonEmbedError(msg)
    return tuple(dict.fromkeys([*given, *(["paraphrase"] if asked else [])]))


def _share(strength: str) -> float:
    from reasonembed_mteb.robustness.variations import STUDY_SHARE

    if strength == "study":
        return STUDY_SHARE
    name, _, value = strength.partition("=")
    try:
        if name != "share":
            raise ValueError
        return float(value)
    except ValueError as error:
        msg = f"--strength {strength!r}: give study, or share= and a share of the words, such as share=0.2"
        raise ReasonEmbedError(msg) from error


def _wordnet(folder: Path | None) -> WordNet:
    from reasonembed_mteb.robustness.wordnet import read_wordnet

    found = read_wordnet(folder)
    if found.without_exceptions:
        parts = ", ".join(found.without_exceptions)
        say(
            f"this WordNet has no exception lists ({parts}): inflected words get no synonym; Debian's "
            "wordnet-base and nltk's have them"
        )
    return found


def _paraphrases(
    tasks: Sequence[AbsTask],
    options: RunOptions,
    file: Path | None,
    url: str | None,
    model: str | None,
    key: str,
) -> Mapping[str, str]:
    """Read paraphrases, or ask for those of every query of the tasks."""
    from reasonembed_mteb.evaluation.limits import own_copy
    from reasonembed_mteb.llm.client import Endpoint, LLMClient
    from reasonembed_mteb.robustness.paraphrases import ask_paraphrases, read_paraphrases
    from reasonembed_mteb.robustness.tasks import query_texts

    if file is not None:
        if url is not None:
            msg = "--paraphrases and --paraphrase-url both give paraphrases: leave one out"
            raise ReasonEmbedError(msg)
        return read_paraphrases(file)
    if url is None or model is None:
        msg = "--paraphrase-url and --paraphrase-model go together: give both"
        raise ReasonEmbedError(msg)
    texts = []
    for own in map(own_copy, tasks):
        own.load_data()
        texts += list(query_texts(own, options.limit))
    endpoint = Endpoint(url, model, api_key_env=key)
    show_progress = None if options.progress else False
    with LLMClient(endpoint, options.output / "answers", show_progress=show_progress) as client:
        return ask_paraphrases(texts, client)


def _measure(
    metas: Sequence[ModelMeta], tasks: Sequence[AbsTask], options: RunOptions, most: int
) -> list[str]:
    """Measure and write the geometry of each model; one that fails, by a line, does not stop the others."""
    from reasonembed_mteb.errors import one_line
    from reasonembed_mteb.evaluation.geometries import write_geometry
    from reasonembed_mteb.evaluation.runner import output_folder
    from reasonembed_mteb.robustness.geometry import measure_geometry

    failures = []
    assert options.store is not None
    for meta in metas:
        try:
            for one in measure_geometry(
                meta, tasks, options.store, most=most, device=options.device, progress=options.progress
            ):
                write_geometry(output_folder(options), one)
        except Exception as error:
            logger.debug("the geometry of %s failed", meta.name, exc_info=True)
            failures.append(f"geometry of {meta.name}: {one_line(error)}")
    return failures


def _show(output: Path) -> None:
    """Print the chapter on robustness of an output folder."""
    from reasonembed_mteb.cli.show import terminal_width
    from reasonembed_mteb.reporting.chapters import chapter_grids
    from reasonembed_mteb.reporting.formats import as_table
    from reasonembed_mteb.reporting.robustness import robustness_chapters

    chapters, problems = robustness_chapters([output])
    for chapter in chapters:
        for grid in chapter_grids(chapter):
            show(as_table(grid, terminal_width()))
    for line in problems:
        say(line)
    if chapters:
        say(f"`reasonembed report {output} --format html --output report.html` shows the same as a page")
