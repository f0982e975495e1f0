"""Published sizes of tasks, and what tasks have in common, without their data."""

from __future__ import annotations

import mteb
import pytest

from reasonembed_mteb.evaluation.sizes import published_size
from reasonembed_mteb.retrieval.rows import benchmark_rows

pytestmark = pytest.mark.usefixtures("registered")


def test_our_table_comes_before_mtebs_statistics() -> None:
    size = published_size(mteb.get_task("ReasonEmbedBrightBiology"))
    assert (size.queries, size.documents) == (103, 57_359)
    # mteb's descriptive_stats/Retrieval/BrightBiologyRetrieval.json: 18,882,181 characters.
    assert size.document_characters == pytest.approx(18_882_181 / 57_359)
    assert size.query_characters == pytest.approx(523.0388, abs=1e-3)


def test_mtebs_statistics_count_where_our_table_does_not() -> None:
    size = published_size(mteb.get_task("BrowseCompPlusRetrieval"))
    assert (size.queries, size.documents) == (830, 100_195)
    assert size.document_characters == pytest.approx(32_296.2, abs=0.1)


def test_what_nobody_says_is_none() -> None:
    tempo = published_size(mteb.get_task("ReasonEmbedTempoLaw"))
    assert (tempo.queries, tempo.documents, tempo.query_characters) == (None, None, None)
    stack = published_size(mteb.get_task("ReasonEmbedFreshStackYolo"))
    assert (stack.queries, stack.documents, stack.document_characters) == (57, 27_207, None)


def test_rewritten_queries_have_their_number_and_no_length() -> None:
    original, rewritten = (
        published_size(mteb.get_task(f"ReasonEmbedBrightBiology{suffix}")) for suffix in ("", "Gpt4Reason")
    )
    assert (rewritten.queries, rewritten.query_characters) == (103, None)
    assert rewritten.same_documents == original.same_documents
    assert rewritten.same_queries != original.same_queries


@pytest.mark.parametrize(
    "names",
    [
        ["ReasonEmbedBrightAops", "ReasonEmbedBrightTheoremQAQuestions"],
        ["ReasonEmbedBrightBiology", "ReasonEmbedR2MEDBiology"],
        [row.name for row in benchmark_rows("MathNet(ReasonEmbed)")],
        ["TempReasonL2Pure", "TempReasonL2Fact", "TempReasonL2Context"],
    ],
)
def test_tasks_with_the_same_documents_are_known(names: list[str]) -> None:
    assert len({published_size(mteb.get_task(name)).same_documents for name in names}) == 1


def test_other_tasks_have_documents_of_their_own() -> None:
    alone = [
        *("BrightProBiologyRetrieval", "ReasonEmbedBrightBiology", "ReasonEmbedBrightBiologyLong"),
        *(row.name for row in benchmark_rows("TEMPO(ReasonEmbed)")),
        *(row.name for row in benchmark_rows("MIRB(ReasonEmbed)")),
        *(row.name for row in benchmark_rows("ImpliRet(ReasonEmbed)")),
    ]
    assert len({published_size(mteb.get_task(name)).same_documents for name in alone}) == len(alone)
    # MathNet's tiers share their queries too.
    tiers = benchmark_rows("MathNet(ReasonEmbed)")
    assert len({published_size(mteb.get_task(row.name)).same_queries for row in tiers}) == 1
