"""Token budgets, and iterators that run ahead."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from reasonembed_mteb.encoding.loop import TokenBudget, batch_cost, prefetched, token_batches

LENGTHS = np.random.default_rng(0).lognormal(5, 1, 500).astype(np.int64) + 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("budget", [1, 300, 4096])
def test_every_text_once_under_the_budget_longest_first(budget: int, padded: bool) -> None:
    batches = list(token_batches(LENGTHS, budget, padded=padded))
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    longest = [LENGTHS[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or batch_cost(LENGTHS[batch], padded=padded) <= budget
    # A budget that holds many texts is used.
    costs = [batch_cost(LENGTHS[batch], padded=padded) for batch in batches[:-1]]
    assert budget < 4096 or np.mean(costs) > 0.75 * budget


def test_no_text_no_batch() -> None:
    assert list(token_batches(np.zeros(0, dtype=np.int64), 10, padded=True)) == []


def test_a_budget_halves_below_what_did_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    budget = TokenBudget(1000)
    budget.halve(spent=600)
    assert budget.tokens == 300
    budget.halve(spent=5000)
    assert budget.tokens == 150
    assert caplog.messages == [
        "out of memory: going on with 300 tokens a batch",
        "out of memory: going on with 150 tokens a batch",
    ]


def test_prefetching_runs_elsewhere_and_keeps_order() -> None:
    threads = set()

    def numbers() -> object:
        for number in range(50):
            threads.add(threading.get_ident())
            yield number

    assert list(prefetched(iter(numbers()))) == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_prefetching_passes_errors_on_and_stops_when_left() -> None:
    made = []

    def numbers() -> object:
        for number in range(50):
            made.append(number)
            if number == 20:
                msg = "twenty"
                raise ValueError(msg)
            yield number

    running = prefetched(iter(numbers()), depth=3)
    assert next(running) == 0
    running.close()
    assert len(made) < 10
    made.clear()
    with pytest.raises(ValueError, match="twenty"):
        list(prefetched(iter(numbers())))
