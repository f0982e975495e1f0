"""What a dry run of `reasonembed run` shows: sizes by task, cost in all, what tasks share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from reasonembed_mteb.cli.common import say, show
from reasonembed_mteb.cli.show import show_table
from reasonembed_mteb.errors import ReasonEmbedError, first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.costs import MeasuredSpeed, Total
    from reasonembed_mteb.evaluation.plan import TaskPlan
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.reasoning.planning import ReasoningEstimate

_HEAD = [
    "task",
    "queries",
    "documents",
    "query tokens",
    "document tokens",
    "cut",
    "length",
    "data",
    "before each query",
]


def show_plans(plans: Sequence[TaskPlan], title: str) -> None:
    """Print what a run would do.

    Args:
        plans: One per task.
        title: Which model.
    """
    from reasonembed_mteb.evaluation.plan import SAMPLE
    from reasonembed_mteb.models.instructions import describe_prefix

    rows = [
        [
            plan.task,
            _count(plan.queries),
            _count(plan.documents),
            ("~" if plan.published and plan.query_tokens else "") + _count(plan.query_tokens),
            ("~" if (plan.sampled or plan.published) and plan.document_tokens else "")
            + _count(plan.document_tokens),
            "-" if plan.truncated is None else f"{plan.truncated:.1%}",
            _count(plan.length),
            "not here" if plan.published else "here",
            describe_prefix(plan.prefix),
        ]
        for plan in plans
    ]
    counted = f"tokens counted in full, ~ from {SAMPLE:,} documents; cut: share of documents over the length"
    if any(plan.published for plan in plans):
        counted += "; data not here: published sizes, ~ tokens by mean characters, at most; - not known"
    show_table(_HEAD, rows, f"{title}: would run ({counted})")


def show_reasoning(estimates: Sequence[ReasoningEstimate], title: str) -> None:
    """Print what would be generated before queries are embedded, for one model.

    Args:
        estimates: One per way of reasoning and task.
        title: Which model.
    """
    if not estimates:
        return
    rows = [
        [
            one.task,
            one.reasoning,
            _count(one.queries),
            _count(one.query_tokens),
            _count(one.most_tokens),
            _count(one.kept),
            _count(one.left_tokens),
            _price(one.price, one.estimated),
        ]
        for one in estimates
    ]
    left = [one.left_tokens for one in estimates if one.left_tokens is not None]
    prices = [one.price for one in estimates if one.price is not None]
    total = _price(sum(prices) if prices else None, any(one.estimated for one in estimates))
    rows.append(["all", "", "", "", "", "", _count(sum(left)), total])
    head = ["task", "reasoning", "queries", "query tokens", "tokens", "kept", "left", "price"]
    said = "tokens: generated at most; kept: queries with a reasoning; left: generated at most for the others"
    show_table(head, rows, f"{title}: would reason ({said}; price: of those, at most; - not known, or none)")


def _price(price: float | None, estimated: bool) -> str:
    # Rounded up: it is the most.
    return "-" if price is None else f"{'~' if estimated else ''}{math.ceil(100 * price) / 100:,.2f}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def show_costs(meta: ModelMeta, plans: Sequence[TaskPlan], options: RunOptions, measure_speed: bool) -> None:
    """Print what a model's tasks cost together.

    Args:
        meta: The model.
        plans: One per task.
        options: How to run.
        measure_speed: Whether to load the model and measure its speed.
    """
    from reasonembed_mteb.evaluation.costs import add_up
    from reasonembed_mteb.models.instructions import ABLATED

    bare = bool((meta.experiment_kwargs or {}).get(ABLATED))
    stored = options.store is not None and "dense" in (meta.model_type or ())
    total = add_up(plans, shares=stored, documents=not (bare and stored))
    tasks = f"{total.tasks:,} {'task' if total.tasks == 1 else 'tasks'}"
    lines = [f"{tasks}, {_about(total.texts, total.without_texts)} texts"]
    if any(plan.length for plan in plans):
        lines += _token_lines(total)
        speed = _speed(meta, plans, options, measure_speed)
        lines += [_hours(total, speed), _disk(meta, total, speed, options)]
    show("\n".join(lines))
    if total.shared:
        rows = [[one.kind, _count(one.texts), first_names(one.tasks, 4)] for one in total.shared]
        show_table(
            ["shared", "texts", "tasks"], rows, "Encoded once, as the store knows a text by its content"
        )


def _about(number: int, unknown: Sequence[str]) -> str:
    return f"at least {number:,}" if unknown else f"{number:,}"


def _token_lines(total: Total) -> list[str]:
    from reasonembed_mteb.evaluation.costs import by_benchmark

    known = total.tasks - len(total.without_tokens)
    about = "~" if total.estimated else ""
    if not total.without_tokens:
        return [f"tokens: {about}{total.tokens:,}"]
    parts = ", ".join(f"{name} {count}" for name, count in by_benchmark(total.without_tokens).items())
    return [
        f"tokens: {about}{total.tokens:,} in {known} of {total.tasks} tasks",
        f"not known: the tokens of {len(total.without_tokens)} tasks, whose lengths nobody publishes "
        f"({parts}); `reasonembed download` fetches their data, which are counted then",
    ]


def _speed(
    meta: ModelMeta, plans: Sequence[TaskPlan], options: RunOptions, measure_speed: bool
) -> MeasuredSpeed | None:
    from reasonembed_mteb.evaluation.costs import mean_tokens, measured_speed, recorded_speed
    from reasonembed_mteb.evaluation.plan import Reader

    if not measure_speed:
        return recorded_speed(options.output, meta)
    try:
        return measured_speed(meta, options, mean_tokens(plans), Reader(meta).characters_a_token)
    except ReasonEmbedError as error:
        say(str(error))
        return None


def _hours(total: Total, speed: MeasuredSpeed | None) -> str:
    if speed is None:
        return "hours: not known; --measure-speed measures this machine's, and earlier runs record it"
    more = " for the tokens that are known" if total.without_tokens else ""
    rate = f"{speed.tokens_a_second:,.0f} tokens a second"
    return f"hours: {total.hours(speed):,.2f}{more}, at {rate} ({speed.how})"


def _disk(meta: ModelMeta, total: Total, speed: MeasuredSpeed | None, options: RunOptions) -> str:
    chosen = (meta.experiment_kwargs or {}).get("embed_dim") or meta.embed_dim
    dimensions = chosen if isinstance(chosen, int) else speed.dimensions if speed is not None else None
    if options.store is None or "dense" not in (meta.model_type or ()):
        return "disk: no vectors are kept"
    if dimensions is None:
        return "disk: not known, as is the vectors' dimension; --measure-speed tells"
    size = total.disk(dimensions, options.store_dtype) / 2**30
    head = "at least " if total.without_texts else "at most " if options.store_dtype == "auto" else ""
    return f"disk: {head}{size:,.2f} GiB of vectors ({dimensions:,} dimensions, {options.store_dtype})"
