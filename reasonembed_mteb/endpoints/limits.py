"""What requests have used (tokens, cost, retries), and the budget that they may not exceed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from reasonembed_mteb.errors import ReasonEmbedError


class BudgetExceeded(ReasonEmbedError):  # noqa: N818 (the name of what happened, not of a mistake)
    """The budget is spent; everything that was answered is kept."""


@dataclass(frozen=True)
class Usage:
    """What a client has used so far.

    Attributes:
        requests: Requests that were sent and came to an end, well or with an error of their own.
        cached: Requests answered from disk or by an equal request, which cost nothing.
        prompt_tokens: Of the requests sent, as the endpoint counts them.
        completion_tokens: Likewise.
        cost: By the endpoint's prices, None without prices.
        retries: Attempts beyond the first of each request.
        cached_prompt_tokens: Of the requests that cost nothing, as the endpoint counted them once.
        cached_completion_tokens: Likewise.
        uncounted: Answers, from disk or not, whose tokens the endpoint did not count: what they cost is not
            known.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    retries: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    uncounted: int = 0


@dataclass
class Counts:
    """`Usage` as it grows; the cost is worked out from it."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    uncounted: int = 0


class Budget:
    """A limit for what clients spend; several may share one.

    A request is let through as long as what is spent, plus the requests on their way at the mean price so
    far, stays below the limit. What is on its way is paid for anyway and is waited for, so the limit can be
    passed by a little: at most by one round of concurrent requests, before anything is known of their price.
    A strict budget is never passed: a request is let through only where the most that it and those on their
    way can cost still fits, and waits for them where it does not. There an answer whose tokens the endpoint
    does not count is booked at the most that it can have cost.
    """

    def __init__(
        self, *, max_cost: float | None = None, max_tokens: int | None = None, strict: bool = False
    ) -> None:
        """Set the limits; None is no limit.

        Args:
            max_cost: In the unit of the endpoints' prices.
            max_tokens: Prompt and completion tokens together.
            strict: Never pass ``max_cost``.

        Raises:
            ReasonEmbedError: If a limit is below 0 or no number.
        """
        for name, limit in (("max_cost", max_cost), ("max_tokens", max_tokens)):
            # What is no number would never be passed.
            if limit is not None and not limit >= 0:
                msg = f"{name} is {limit}: it must be a number and not below 0"
                raise ReasonEmbedError(msg)
        self.max_cost, self.max_tokens, self.strict = max_cost, max_tokens, strict
        self.cost, self.tokens = 0.0, 0
        self._reserved = 0.0
        self._answered = self._on_their_way = 0
        self._lock = threading.Lock()

    def reserve(self, most: float = 0.0) -> bool:
        """Let one request through.

        Args:
            most: The most that it can cost; heeded by a strict budget.

        Returns:
            False where it has to wait for those on their way.

        Raises:
            BudgetExceeded: If it would pass a limit.
        """
        with self._lock:
            if self.strict and self._is_short_of(most):
                if self._on_their_way:
                    return False
                raise self._spent("max_cost", self.max_cost)
            factor = 1 + self._on_their_way / max(self._answered, 1)
            limits = (("max_cost", self.cost, self.max_cost), ("max_tokens", self.tokens, self.max_tokens))
            # What may be spent in money has been looked at above where the budget is strict.
            for name, spent, limit in limits[1:] if self.strict else limits:
                if limit is not None and spent * factor >= limit:
                    raise self._spent(name, limit)
            self._on_their_way += 1
            self._reserved += most
        return True

    def _is_short_of(self, most: float) -> bool:
        return self.max_cost is not None and self.cost + self._reserved + most > self.max_cost

    def _spent(self, name: str, limit: float | None) -> BudgetExceeded:
        msg = (
            f"the budget is spent: {self._answered + self._on_their_way:,} requests take up "
            f"{name} = {limit:,}; their answers are kept: raise it and run again to go on"
        )
        return BudgetExceeded(msg)

    def settle(self, tokens: int | None = None, cost: float | None = None, most: float = 0.0) -> None:
        """Book a request that has come back.

        Args:
            tokens: What it used; None if it was not answered.
            cost: Its price, None without prices.
            most: What was reserved for it.
        """
        with self._lock:
            self._on_their_way -= 1
            # What is left of differences of decimal fractions is not reserved for anybody.
            self._reserved = self._reserved - most if self._on_their_way else 0.0
            if tokens is not None:
                self._answered += 1
                self.tokens += tokens
                self.cost += cost or 0.0
