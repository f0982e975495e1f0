"""Speed, time left and memory of a run."""

from __future__ import annotations

import re

from reasonembed_mteb.training.progress import Progress, peak_memory


def test_speed_is_of_the_last_lines_and_time_of_all() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    assert progress.line(0, 10) == ""
    # Gone on with from step 4; a second epoch does not begin anew.
    progress.begin(4)
    now[0] += 20
    progress.begin(4)
    progress.add(3_000)
    progress.add(1_000)
    assert progress.line(6, 12).startswith("200 tokens/s, 0:01:00 left, ")
    now[0] += 2
    progress.add(5_000)
    assert progress.line(8, 12).startswith("2,500 tokens/s, 0:00:22 left, ")
    now[0] += 3700
    # Nothing since: scores, for one.
    assert progress.line(10, 12).startswith("0:20:41 left, ")
    assert "left" not in progress.line(12, 12)


def test_memory_has_a_unit() -> None:
    assert re.fullmatch(r"\d+\.\d( of \d+\.\d)? GiB", peak_memory())
