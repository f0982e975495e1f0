"""What every stage that asks shares: its client, and what its requests cost."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from reasonembed_mteb.evaluation.stages import StageCost
from reasonembed_mteb.llm.client import LLMClient

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    from reasonembed_mteb.endpoints.endpoint import Answer, Endpoint, Request
    from reasonembed_mteb.endpoints.limits import Usage
    from reasonembed_mteb.pipelines.config import AskingStageSection
    from reasonembed_mteb.pipelines.pool import Tools

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
def stage_client(stage: AskingStageSection, tools: Tools) -> Iterator[LLMClient]:
    """Give the client of a stage.

    Args:
        stage: Its endpoint is asked.
        tools: Answers and budget.

    Yields:
        A client that keeps every answer.
    """
    endpoint = tools.config.endpoint(stage)
    shown = None if tools.progress else False
    with LLMClient(
        endpoint, tools.answers, tools.budget, retry_errors=tools.retry_errors, show_progress=shown
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
    return StageCost(
        calls=usage.requests + usage.cached,
        cached=usage.cached,
        prompt_tokens=prompt,
        completion_tokens=completion,
        price=endpoint.cost(prompt, completion),
    )
