"""Randomisation tests, Holm's correction, bootstrap intervals and marks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from reasonembed_mteb.reporting import significance
from reasonembed_mteb.reporting.significance import (
    compare_models,
    holm,
    paired_test,
    pairwise_pvalues,
    significance_marks,
)


def by_query(values: object) -> dict[str, float]:
    return {f"q{place}": float(value) for place, value in enumerate(np.asarray(values))}


def scipys(differences: np.ndarray, resamples: int) -> float:
    """Test as scipy's documentation does: the mean of one sample, its signs flipped, two-sided."""
    tested = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(5),
    )
    return float(tested.pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_few_queries_are_tested_exactly_as_scipy_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    # Few values, so that many flips tie with the observed one.
    first, second = draw.integers(0, 4, (2, 10)) / 3
    expected = scipys(first - second, 2**10)
    tested = paired_test(by_query(first), by_query(second))
    assert tested.is_exact
    assert tested.queries == 10
    assert tested.difference == pytest.approx(first.mean() - second.mean())
    assert tested.pvalue == pytest.approx(expected, abs=1e-12)
    assert pairwise_pvalues(np.array([first, second]))[0, 1] == pytest.approx(expected, abs=1e-12)


def test_exact_pvalue_by_enumeration() -> None:
    differences = np.array([0.3, 0.1, -0.2, 0.4])
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    expected = np.mean([total >= 0.6 - 1e-12 for total in sums])
    assert paired_test(by_query(differences), by_query(np.zeros(4))).pvalue == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05])
def test_many_queries_agree_with_scipy_within_the_samples_error(shift: float) -> None:
    draw = np.random.default_rng(3)
    first = draw.random(150)
    second = np.clip(first + draw.normal(shift, 0.2, 150), 0, 1)
    expected = scipys(first - second, 49_999)
    error = 4 * np.sqrt(expected * (1 - expected) / 9_999) * 1.3 + 1e-3
    tested = paired_test(by_query(first), by_query(second))
    assert not tested.is_exact
    assert tested.pvalue == pytest.approx(expected, abs=error)
    pairs = pairwise_pvalues(np.array([first, second, first]))
    assert pairs[0, 1] == pytest.approx(expected, abs=error)
    assert pairs[0, 1] == pairs[1, 0] == pairs[1, 2]
    assert pairs[0, 2] == pairs[0, 0] == 1


@pytest.mark.parametrize("kind", ["one pair", "many pairs"])
def test_pvalues_are_uniform_where_models_do_not_differ(kind: str) -> None:
    draw = np.random.default_rng(11)
    pvalues = []
    for seed in range(300):
        # A shared difficulty of the queries, and noise of unequal size: exchangeable all the same.
        scores = draw.random(40) + draw.normal(0, 1 + draw.random(40), (2, 40))
        if kind == "one pair":
            one, other = map(by_query, scores)
            pvalues.append(paired_test(one, other, resamples=999, seed=seed).pvalue)
        else:
            pvalues.append(pairwise_pvalues(scores, resamples=999, seed=seed)[0, 1])
    assert stats.kstest(pvalues, "uniform").pvalue > 0.05
    assert 0.02 <= np.mean(np.array(pvalues) <= 0.05) <= 0.08


def test_a_real_difference_is_found_and_the_seed_decides() -> None:
    draw = np.random.default_rng(0)
    first = draw.random(100)
    second = first - 0.1 + draw.normal(0, 0.1, 100)
    tested = paired_test(by_query(first), by_query(second))
    # No more extreme than the observed one among 9,999 others: not zero.
    assert tested.pvalue == 1 / 10_000
    assert pairwise_pvalues(np.array([first, second]))[0, 1] == 1 / 10_000
    third = first + draw.normal(0, 0.1, 100)
    again = [paired_test(by_query(first), by_query(third), seed=seed).pvalue for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_equal_models_and_single_queries_never_differ() -> None:
    values = by_query(np.random.default_rng(0).random(50))
    assert paired_test(values, values).pvalue == 1
    assert paired_test({"q": 1.0}, {"q": 0.0}).pvalue == 1
    assert compare_models({"a": {"q": 1.0}, "b": {"q": 0.0}}).pvalues[0, 1] == 1


def test_holm_by_hand() -> None:
    # The example of R's p.adjust documentation form: sorted p times 5, 4, 3 ..., never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


def test_comparison_is_ordered_and_corrected() -> None:
    draw = np.random.default_rng(2)
    base = draw.random(120)
    scores = {
        name: by_query(base + shift + draw.normal(0, 0.1, 120))
        for name, shift in (("c", 0), ("a", 0.2), ("b", 0.1))
    }
    tested = compare_models(scores)
    assert tested.models == ("a", "b", "c")
    assert list(tested.means) == sorted(tested.means, reverse=True)
    raw = [tested.pvalues[pair] for pair in ((0, 1), (0, 2), (1, 2))]
    assert [tested.adjusted[pair] for pair in ((0, 1), (0, 2), (1, 2))] == pytest.approx(list(holm(raw)))
    assert (tested.adjusted == tested.adjusted.T).all()
    assert tested.pair("c", "a") == (tested.pvalues[0, 2], tested.adjusted[0, 2])


def test_many_models_get_flips_enough_for_the_correction() -> None:
    draw = np.random.default_rng(4)
    scores = {f"m{i}": by_query(draw.random(80)) for i in range(40)}
    scores["best"] = by_query(draw.random(80) + 2)
    tested = significance_marks(scores)
    # 820 pairs: with 9,999 flips none could fall below 0.05 after the correction.
    assert tested.top == {"best"}
    assert len(tested.beats["best"]) == 40


def test_the_order_of_the_queries_does_not_matter() -> None:
    first, second = {"a": 1.0, "b": 5.0, "c": 9.0}, {"c": 8.0, "a": 0.0, "b": 4.0}
    # Every difference is 1: of 8 flips only two are as large.
    assert paired_test(first, second).pvalue == 2 / 8
    assert compare_models({"one": first, "other": second}).pvalues[0, 1] == 2 / 8


def test_marks_are_corrected_for_the_number_of_pairs() -> None:
    draw = np.random.default_rng(0)
    marks = significance_marks({f"m{i}": by_query(draw.random(60)) for i in range(15)})
    assert (marks.comparison.pvalues <= 0.05).any()
    assert set(marks.letters.values()) == {"a"}
    assert len(marks.top) == 15


def test_marks() -> None:
    draw = np.random.default_rng(6)
    base = draw.random(200)

    def model(shift: float) -> dict[str, float]:
        return by_query(base + shift + draw.normal(0, 0.15, 200))

    marks = significance_marks({"low": model(0), "high": model(0.5), "twin": model(0.5), "alone": model(1)})
    assert marks.letters["alone"] == "a"
    assert marks.letters["high"] == marks.letters["twin"] == "b"
    assert marks.letters["low"] == "c"
    assert marks.beats["alone"] == tuple(name for name in marks.comparison.models[1:])
    assert marks.beats["low"] == ()
    assert marks.top == {"alone"}
    assert significance_marks({"only": model(0)}).letters == {"only": "a"}


@pytest.mark.parametrize("seed", range(20))
def test_models_share_a_letter_exactly_if_they_do_not_differ(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 12))
    differ = np.triu(draw.random((count, count)) < draw.random(), 1)
    letters = significance._letter_display(differ | differ.T)
    for first, second in itertools.combinations(range(count), 2):
        assert bool(set(letters[first]) & set(letters[second])) != differ[first, second]
    assert all(letters)
    # No letter says what another says already.
    groups = [{m for m in range(count) if name in letters[m]} for name in set("".join(letters))]
    assert not [group for group, other in itertools.permutations(groups, 2) if group <= other]


def test_letters_go_on_after_the_alphabet() -> None:
    assert [significance._letter(place) for place in (0, 25, 26, 51, 52, 104)] == [
        "a",
        "z",
        "A",
        "Z",
        "a2",
        "a3",
    ]
