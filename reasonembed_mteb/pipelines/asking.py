"""What every stage that asks shares: its client, and what its requests cost."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.stages import StageCost
from reasonembed_mteb.llm.batch import BatchFiles
from reasonembed_mteb.llm.client import LLMClient
from reasonembed_mteb.llm.replies import CHAT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    from reasonembed_mteb.endpoints.endpoint import Answer, Endpoint, Request
    from reasonembed_mteb.endpoints.limits import Usage
    from reasonembed_mteb.endpoints.retries import Service
    from reasonembed_mteb.pipelines.config import AskingStageSection
    from reasonembed_mteb.pipelines.pool import Pool, Tools

    class Client(Protocol):
        """What answers requests, over the network or not."""

        @property
        def usage(self) -> Usage:
            """What has been used so far."""

        def run(
            self,
            requests: Iterable[Request],
            *,
            total: int | None = None,
            description: str,
            ahead: int | None = None,
        ) -> Iterator[Answer]:
            """Answer in the order of the requests."""


@contextlib.contextmanager
def stage_client(
    stage: AskingStageSection, pool: Pool, tools: Tools, service: Service = CHAT
) -> Iterator[LLMClient | BatchFiles]:
    """Give the client of a stage.

    Args:
        stage: Its endpoint is asked.
        pool: Its task names the file of a batch.
        tools: Answers and budget; whether a batch is written in place of asking.
        service: What is asked for.

    Yields:
        A client that keeps every answer.
    """
    endpoint, retry = tools.config.endpoint(stage), tools.retry_errors
    if tools.batch is not None:
        file = tools.batch / f"{file_name(pool.task.name)}-{stage.name}.jsonl"
        with BatchFiles(endpoint, tools.answers, file, service=service, retry_errors=retry) as batch:
            yield batch
        return
    shown = None if tools.progress else False
    with LLMClient(
        endpoint, tools.answers, tools.budget, service=service, retry_errors=retry, show_progress=shown
    ) as client:
        yield client


def cost_of(usage: Usage, endpoint: Endpoint) -> StageCost:
    """Return what requests cost, as if each had been sent: what was answered before was paid for once.

    Args:
        usage: Of the stage's own client.
        endpoint: Its prices.
    """
    prompt = usage.prompt_tokens + usage.cached_prompt_tokens
    completion = usage.completion_tokens + usage.cached_completion_tokens
    cost = StageCost(
        calls=usage.requests + usage.cached,
        cached=usage.cached,
        prompt_tokens=prompt,
        completion_tokens=completion,
        uncounted=usage.uncounted,
    )
    return priced(cost, endpoint)


def priced(cost: StageCost, endpoint: Endpoint) -> StageCost:
    """Return a cost with its price, None where that is not known.

    Args:
        cost: Its tokens count.
        endpoint: Its prices.
    """
    price = endpoint.cost(cost.prompt_tokens, cost.completion_tokens)
    # Unless tokens are free.
    unknown = cost.uncounted and endpoint.cost(1, 1)
    return replace(cost, price=None if unknown else price)
