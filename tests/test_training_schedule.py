"""DeepSpeed's schedule, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from reasonembed_mteb.training.schedule import warmup_decay, warmup_decay_schedule


def test_the_rate_is_deepspeeds() -> None:
    # WarmupDecayLR(total_num_steps=20, warmup_num_steps=4, warmup_min_lr=0), stepped after every optimiser
    # step: the rates of the steps by its own formulas, its count being one behind.
    log = [math.log(n) / math.log(4) for n in (1, 2, 3, 4)]
    fall = [(20 - n) / 16 for n in range(4, 19)]
    rates = [warmup_decay(step, 4, 20) for step in range(20)]
    assert rates == pytest.approx([0.0, *log, *fall])
    # Not the linear rise of transformers, which is at a half after two of four steps.
    assert rates[2] == pytest.approx(0.5)
    assert rates[3] == pytest.approx(0.792, abs=1e-3)
    assert max(rates) == 1.0


def test_no_warmup_is_two_steps_of_it() -> None:
    assert [warmup_decay(step, 0, 3) for step in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_a_schedule_goes_on_where_it_was() -> None:
    def make() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, warmup_decay_schedule(optimizer, 4, 20)

    optimizer, schedule = make()
    seen = []
    for _ in range(8):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([2 * warmup_decay(step, 4, 20) for step in range(8)])
    _, other = make()
    other.load_state_dict(schedule.state_dict())
    assert other.get_last_lr() == schedule.get_last_lr()
