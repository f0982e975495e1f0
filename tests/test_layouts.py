"""Every layout of the tables from a local copy; scores are what brute force gives."""

from __future__ import annotations

import itertools
import json
import logging
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import layouts
from reasonembed_mteb.retrieval.measures import query_measures
from reasonembed_mteb.retrieval.rows import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

pytestmark = pytest.mark.usefixtures("registered")

IMPLIRET = Path(__file__).resolve().parents[2] / "shared" / "data" / "impliret"
RELEVANT = {"d1", "d3"}


def vector(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=8)


class ByText(AbsEncoder):
    """An encoder whose vectors hang on the text alone."""

    def __init__(self) -> None:
        """Take the dot product."""
        function = ScoringFunction.DOT_PRODUCT
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": "test/by-text", "revision": "1", "similarity_fn_name": function}
        )

    def encode(self, inputs: Any, **_: Any) -> Any:
        """Return a vector a text."""
        return np.stack([vector(text) for batch in inputs for text in batch["text"]])


def evaluate(task: Any) -> Any:
    results = mteb.evaluate(ByText(), [task], cache=None, co2_tracker=False, show_progress_bar=False)
    return results.task_results[0]


def rank(query: str, documents: Mapping[str, str], excluded: Sequence[str] = ()) -> list[str]:
    """Rank documents by brute force in fp64."""
    scores = {name: float(vector(query) @ vector(text)) for name, text in documents.items()}
    return sorted((name for name in scores if name not in excluded), key=lambda name: (-scores[name], name))


def ndcg(ranked: Sequence[str], labels: Mapping[str, int], cut: int = 10) -> float:
    gains = [labels.get(name, 0) / math.log2(place + 2) for place, name in enumerate(ranked[:cut])]
    best = [label / math.log2(i + 2) for i, label in enumerate(sorted(labels.values(), reverse=True)[:cut])]
    return sum(gains) / sum(best)


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)


DOCUMENTS = {f"d{number}": f"document {number}" for number in range(30)}
QUERIES = {"q1": "first question", "q2": "second question"}
LABELS = {"q1": {"d1": 1, "d3": 1}, "q2": {"d5": 2, "d6": 1}}


@pytest.mark.parametrize("tier", ["easy", "medium", "hard"])
@pytest.mark.parametrize("ending", ["jsonl", "tsv"])
def test_mathnet_has_three_tiers_over_one_corpus(
    tier: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONEMBED_MATHNET_PATH", str(tmp_path))
    for name in ("easy", "medium", "hard"):
        write_lines(tmp_path / name / "corpus.jsonl", [{"_id": k, "text": t} for k, t in DOCUMENTS.items()])
        write_lines(tmp_path / name / "queries.jsonl", [{"_id": k, "text": t} for k, t in QUERIES.items()])
        gold = {"easy": "d1", "medium": "d2", "hard": "d3"}[name]
        rows = [{"query-id": query, "corpus-id": gold, "score": 1} for query in QUERIES]
        file = tmp_path / name / "qrels" / f"test.{ending}"
        write_lines(file, rows)
        if ending == "tsv":
            lines = ["\t".join(str(value) for value in row.values()) for row in rows]
            file.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    result = evaluate(mteb.get_task(f"ReasonEmbedMathNet{tier.capitalize()}"))
    gold = {"easy": "d1", "medium": "d2", "hard": "d3"}[tier]
    firsts = [rank(text, DOCUMENTS)[0] == gold for text in QUERIES.values()]
    assert result.get_score() == pytest.approx(np.mean(firsts))
    scores = result.scores["test"][0]
    assert scores["recall_at_10"] == pytest.approx(
        np.mean([gold in rank(text, DOCUMENTS)[:10] for text in QUERIES.values()])
    )


def write_mirb(folder: Path, *, titles: bool) -> None:
    rows = [{"_id": k, "title": f"title {k}", "text": t} for k, t in DOCUMENTS.items()]
    if not titles:
        rows = [{"_id": row["_id"], "text": row["text"]} for row in rows]
    write_parquet(folder / "corpus" / "train-00000-of-00001.parquet", rows)
    write_parquet(folder / "queries" / "any.parquet", [{"_id": k, "text": t} for k, t in QUERIES.items()])
    labels = [
        {"query-id": query, "corpus-id": document, "score": float(label)}
        for query, gold in LABELS.items()
        for document, label in gold.items()
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", labels)


@pytest.mark.parametrize("titles", [True, False])
def test_mirb_excludes_before_the_cut(titles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_MIRB_PATH", str(tmp_path))
    folder = tmp_path / "modup"
    write_mirb(folder, titles=titles)
    documents = {k: f"title {k} {t}" if titles else t for k, t in DOCUMENTS.items()}
    # The first documents that are no answers.
    out = {
        query: [name for name in rank(text, documents) if name not in LABELS[query]][:12]
        for query, text in QUERIES.items()
    }
    write_parquet(
        folder / "excluded_ids" / "x.parquet",
        [{"query-id": query, "excluded-ids": names} for query, names in out.items()],
    )
    result = evaluate(mteb.get_task("ReasonEmbedMIRBMODup"))
    expected = [ndcg(rank(text, documents, out[q]), LABELS[q]) for q, text in QUERIES.items()]
    assert result.get_score() == pytest.approx(np.mean(expected), abs=1e-5)
    assert result.get_score() > np.mean([ndcg(rank(t, documents), LABELS[q]) for q, t in QUERIES.items()])


def test_one_excluded_document_may_stand_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_MIRB_PATH", str(tmp_path))
    write_mirb(tmp_path / "modup", titles=False)
    rows = [{"query-id": "q1", "excluded-ids": "d9"}, {"query-id": "q2", "excluded-ids": "N/A"}]
    write_parquet(tmp_path / "modup" / "excluded_ids" / "x.parquet", rows)
    assert layouts.load_split(find("ReasonEmbedMIRBMODup"))["excluded_ids"] == {"q1": ["d9"]}


@pytest.mark.parametrize(
    ("corpus", "queries", "labels"),
    [
        ("corpus.jsonl", "queries.jsonl", "qrels/test.jsonl"),
        ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"),
        ("corpus.jsonl", "queries.jsonl", "test.tsv"),
        # As the hub converts data sets to Parquet.
        ("corpus/corpus/0000.parquet", "queries/queries/0000.parquet", "default/test/0000.parquet"),
    ],
)
def test_mirb_is_found_in_the_usual_forms(
    corpus: str, queries: str, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONEMBED_MIRB_PATH", str(tmp_path))
    rows: dict[str, list[dict[str, Any]]] = {
        corpus: [{"_id": k, "text": t} for k, t in DOCUMENTS.items()],
        queries: [{"_id": k, "text": t} for k, t in QUERIES.items()],
        labels: [{"query-id": query, "corpus-id": "d1", "score": 1} for query in QUERIES],
    }
    for name, content in rows.items():
        file = tmp_path / "holps" / name
        (write_parquet if file.suffix == ".parquet" else write_lines)(file, content)
        if file.suffix == ".tsv":
            lines = ["\t".join(map(str, row.values())) for row in content]
            file.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    loaded = layouts.load_split(find("ReasonEmbedMIRBHolPremise"))
    assert loaded["relevant_docs"] == {query: {"d1": 1} for query in QUERIES}
    assert len(loaded["corpus"]) == len(DOCUMENTS)


@pytest.mark.parametrize(("task", "variable", "split"), [
    ("ReasonEmbedMMBrightAskUbuntu", "REASONEMBED_MM_BRIGHT_PATH", "askubuntu"),
    ("ReasonEmbedTempoHSM", "REASONEMBED_TEMPO_PATH", "hsm"),
])  # fmt: skip
def test_negative_documents_are_excluded_and_not_scored(
    task: str, variable: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    documents = [{"id": k, "content": t} for k, t in DOCUMENTS.items()]
    write_parquet(tmp_path / "documents" / f"{split}.parquet", documents)
    out = {q: [d for d in rank(t, DOCUMENTS) if d not in LABELS[q]][:9] for q, t in QUERIES.items()}
    examples = [
        {"id": q, "query": t, "gold_ids": list(LABELS[q]), "negative_ids": out[q], "image_paths": []}
        for q, t in QUERIES.items()
    ]
    write_parquet(tmp_path / "examples" / f"{split}.parquet", examples)
    ones = {query: dict.fromkeys(gold, 1) for query, gold in LABELS.items()}
    expected = [ndcg(rank(text, DOCUMENTS, out[q]), ones[q]) for q, text in QUERIES.items()]
    assert evaluate(mteb.get_task(task)).get_score() == pytest.approx(np.mean(expected), abs=1e-5)


ASPECTS = [
    # As BRIGHT-Pro has them: ids after the query's, weights 1 to 3, documents that two queries share.
    {"id": "biology-1-a1", "supporting_docs": ["d1", "d3"], "weight": 3},
    {"id": "biology-1-a2", "supporting_docs": ["d4"], "weight": 2},
    # Of no document: it counts in the sum alone.
    {"id": "biology-1-a3", "supporting_docs": [], "weight": 1},
    {"id": "biology-2-aspect-1", "supporting_docs": ["d5", "d4"], "weight": 1},
    {"id": "biology-2-aspect-2", "supporting_docs": ["d6"], "weight": 3},
    # One whose documents are no gold.
    {"id": "biology-2-aspect-3", "supporting_docs": ["d9"], "weight": 2},
]
GOLD = {"q1": ["d1", "d3", "d4"], "q2": ["d5", "d6"]}


def write_bright_pro(folder: Path, ending: str) -> None:
    parts = {
        "documents": [{"id": k, "content": t} for k, t in DOCUMENTS.items()],
        "examples": [{"id": q, "query": t, "gold_ids": GOLD[q]} for q, t in QUERIES.items()],
        "aspects": ASPECTS,
    }
    for config, rows in parts.items():
        if ending == "parquet":
            write_parquet(folder / config / "biology-00000-of-00001.parquet", rows)
        else:
            (folder / config).mkdir()
            (folder / config / "biology.json").write_text(json.dumps(rows))


def aspect_scores(ranked: Sequence[str], query: str, cut: int = 25) -> tuple[float, float]:
    """Follow the paper rank by rank in fp64: weighted alpha-nDCG by trying all orders, and A-Recall."""
    # The last aspect that names a document has it: d4 is the second query's.
    shares = {"q1": {"a1": 3 / 6, "b1": 1 / 6}, "q2": {"b1": 1 / 6, "b2": 3 / 6}}[query]
    own = {"q1": {"d1": "a1", "d3": "a1", "d4": "b1"}, "q2": {"d5": "b1", "d6": "b2"}}[query]

    def gain(order: Sequence[str]) -> float:
        seen: list[str] = []
        total = 0.0
        for place, name in enumerate(order[:cut]):
            if name in own:
                total += shares[own[name]] * 0.5 ** seen.count(own[name]) / math.log2(place + 2)
                seen.append(own[name])
        return total

    best = max(gain(order) for order in itertools.permutations(own))
    found = {own[name] for name in ranked[:cut] if name in own}
    return gain(ranked) / best, sum(shares[name] for name in found)


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_bright_pro_weighs_aspects(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_BRIGHT_PRO_PATH", str(tmp_path))
    write_bright_pro(tmp_path, ending)
    task = mteb.get_task("ReasonEmbedBrightProBiology")
    result = evaluate(task)
    scores = result.scores["standard"][0]
    expected = [aspect_scores(rank(text, DOCUMENTS), query) for query, text in QUERIES.items()]
    assert result.get_score() == pytest.approx(np.mean([one for one, _ in expected]), abs=1e-12)
    assert scores["coverage_at_25"] == pytest.approx(np.mean([one for _, one in expected]), abs=1e-12)
    assert 0 < scores["main_score"] < 1
    recalls = [len(set(rank(t, DOCUMENTS)[:25]) & set(GOLD[q])) / len(GOLD[q]) for q, t in QUERIES.items()]
    assert scores["recall_at_25"] == pytest.approx(np.mean(recalls))
    # A cut that leaves something out.
    found = layouts.load_split(find("ReasonEmbedBrightProBiology"))["judged"]
    for query, text in QUERIES.items():
        ranked = rank(text, DOCUMENTS)
        for cut in (1, 5, 12):
            measured = query_measures(
                [f"alpha_ndcg_at_{cut}", f"coverage_at_{cut}"], ranked, {}, found[query]
            )
            assert list(measured.values()) == pytest.approx(aspect_scores(ranked, query, cut), abs=1e-12)


def test_queries_without_aspects_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REASONEMBED_BRIGHT_PRO_PATH", str(tmp_path))
    write_bright_pro(tmp_path, "json")
    (tmp_path / "aspects" / "biology.json").write_text(json.dumps(ASPECTS[:1]))
    with caplog.at_level(logging.WARNING):
        result = evaluate(mteb.get_task("ReasonEmbedBrightProBiology"))
    assert "no aspect names a gold document of 1 queries (q2)" in caplog.text
    # Only the first query's counts, whose one aspect is all there is.
    ranked = rank(QUERIES["q1"], DOCUMENTS)
    own = [1 / math.log2(place + 2) for place, name in enumerate(ranked[:25]) if name in ("d1", "d3")]
    expected = sum(gain * 0.5**number for number, gain in enumerate(own)) / (1 + 0.5 / math.log2(3))
    assert result.get_score() == pytest.approx(expected, abs=1e-12)
    (tmp_path / "aspects" / "biology.json").unlink()
    with pytest.raises(DataError, match=r"has no aspects/biology-\*\.parquet"):
        layouts.load_split(find("ReasonEmbedBrightProBiology"))


def write_freshstack(folder: Path) -> None:
    write_parquet(
        folder / "godot" / "train-00000-of-00001.parquet",
        [{"_id": k, "text": t, "metadata": {"url": "u"}} for k, t in DOCUMENTS.items()],
    )

    def nugget(name: str, good: list[str], bad: list[str]) -> dict[str, Any]:
        return {"_id": name, "text": "n", "relevant_corpus_ids": good, "non_relevant_corpus_ids": bad}

    rows = [
        {
            "query_id": "77",
            "query_title": "How",
            "query_text": "does it work?",
            "nuggets": [
                nugget("77_0", ["d1", "d3"], ["d4"]),
                nugget("77_1", ["d1"], []),
                nugget("77_2", [], ["d2"]),
            ],
        },
        {
            "query_id": "778",
            "query_title": "Why",
            "query_text": "so?",
            "nuggets": [nugget("778_0", ["d8"], [])],
        },
    ]
    write_parquet(folder / "godot" / "test-00000-of-00001.parquet", rows)


def test_freshstack_counts_nuggets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REASONEMBED_FRESHSTACK_PATH", str(tmp_path))
    write_freshstack(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = layouts.load_split(find("ReasonEmbedFreshStackGodot"))
    assert loaded["queries"]["text"][:] == ["How does it work?", "Why so?"]
    # 778's nugget begins with 77: the official scorer gives it to both.
    assert loaded["relevant_docs"]["77"] == {"d1": 2, "d3": 1, "d4": 0, "d2": 0, "d8": 1}
    assert loaded["relevant_docs"]["778"] == {"d8": 1}
    assert "query 77 gets nuggets of another query, 778_0" in caplog.text
    assert "the data have 2 queries, and freshstack.toml has 99" in caplog.text
    assert "the data have 30 documents, and freshstack.toml has 25,482" in caplog.text
    result = evaluate(mteb.get_task("ReasonEmbedFreshStackGodot"))
    nuggets = {"77": [["d1", "d3"], ["d1"], [], ["d8"]], "778": [["d8"]]}
    texts = {"77": "How does it work?", "778": "Why so?"}
    tops = {query: rank(text, DOCUMENTS) for query, text in texts.items()}
    cover = [np.mean([bool(set(tops[q][:20]) & set(n)) for n in nuggets[q]]) for q in texts]
    scores = result.scores["test"][0]
    assert scores["coverage_at_20"] == pytest.approx(np.mean(cover))
    assert scores["recall_at_50"] == 1
    assert scores["main_score"] == scores["alpha_ndcg_at_10"] > 0


def test_nuggets_of_no_query_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REASONEMBED_FRESHSTACK_PATH", str(tmp_path))
    write_lines(tmp_path / "godot" / "train.jsonl", [{"_id": k, "text": t} for k, t in DOCUMENTS.items()])

    def write_nuggets(*names: str) -> None:
        nuggets = [{"_id": n, "relevant_corpus_ids": ["d1"], "non_relevant_corpus_ids": []} for n in names]
        rows = [{"query_id": "77", "query_title": "How", "query_text": "so?", "nuggets": nuggets}]
        write_lines(tmp_path / "godot" / "test.jsonl", rows)

    row = find("ReasonEmbedFreshStackGodot")
    write_nuggets("77_0", "8_0", "9_0")
    assert layouts.load_split(row)["relevant_docs"] == {"77": {"d1": 1}}
    assert "2 nuggets belong to no query, since their ids begin with none's" in caplog.text
    assert "and are left out: 8_0, 9_0" in caplog.text
    write_nuggets("8_0", "9_0")
    with pytest.raises(DataError, match="ReasonEmbedFreshStackGodot: no query has a relevant document"):
        layouts.load_split(row)


def write_coquir(folder: Path, *, languages: Sequence[str], unasked: Sequence[str] = ()) -> None:
    corpus = [
        {"id": f"x-{language}-{number}", "title": "", "text": f"{language} {number}", "lang": language}
        for language in languages
        for number in range(8)
    ]
    write_parquet(folder / "corpus" / "corpus-0.parquet", corpus)
    queries = [{"id": "q1", "text": "sort a list"}, {"id": "q2", "text": "read a file"}]
    others = [one for one in languages if one not in ("go", "python", *unasked)]
    queries += [{"id": f"q-{one}", "text": f"print in {one}"} for one in others]
    write_parquet(folder / "query" / "query-0.parquet", queries)
    labels = [
        {
            "qid": "q1",
            "pos-docids": ["x-go-1", "x-python-1", "x-python-2"],
            "neg-docids": ["x-go-2", "x-python-3", "x-python-4"],
        },
        {"qid": "q2", "pos-docids": ["x-go-3"], "neg-docids": []},
        *({"qid": f"q-{one}", "pos-docids": [f"x-{one}-1"], "neg-docids": []} for one in others),
    ]
    write_parquet(folder / "data" / "test-0.parquet", labels)


def test_coquir_asks_the_pools_of_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = find("ReasonEmbedCoQuIRCVEFixes")
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    write_coquir(tmp_path / "CVEFixes", languages=row.pools)
    loaded = layouts.load_data(row)
    assert list(loaded) == list(row.pools)
    assert loaded["go"]["relevant_docs"] == {"q1": {"x-go-1": 1}, "q2": {"x-go-3": 1}}
    assert loaded["python"]["queries"]["id"][:] == ["q1"]
    assert loaded["python"]["judged"]["q1"].worse == ("x-python-3", "x-python-4")
    assert loaded["c"]["relevant_docs"] == {"q-c": {"x-c-1": 1}}
    with pytest.raises(DataError, match="has the pools c, go"):
        layouts.load_split(row)


def test_coquir_compares_good_code_with_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    write_coquir(tmp_path / "SQLR2", languages=["go", "python"])
    result = evaluate(mteb.get_task("ReasonEmbedCoQuIRSQLR2"))
    documents = {f"x-{lang}-{n}": f"{lang} {n}" for lang in ("go", "python") for n in range(8)}
    order = rank("sort a list", documents)
    good, bad = ["x-go-1", "x-python-1", "x-python-2"], ["x-go-2", "x-python-3", "x-python-4"]
    won = [order.index(a) < order.index(b) for a in good for b in bad]
    scores = result.scores["test"][0]
    # The second query has nothing to compare.
    assert scores["ppa"] == pytest.approx(np.mean(won))
    margins = [1 / (1 + order.index(a)) - 1 / (1 + order.index(b)) for a in good for b in bad]
    assert scores["mrs"] == pytest.approx(np.mean(margins))


def test_a_pool_without_documents_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = find("ReasonEmbedCoQuIRCVEFixes")
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    write_coquir(tmp_path / "CVEFixes", languages=row.pools[:-1])
    with pytest.raises(DataError, match=r"lacks ruby, and coquir\.toml has the pools c, go, java, python"):
        layouts.load_data(row)
    write_coquir(tmp_path / "CVEFixes", languages=[*row.pools, "cobol"])
    with pytest.raises(DataError, match="has documents of cobol"):
        layouts.load_data(row)


def test_a_pool_that_no_query_goes_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = find("ReasonEmbedCoQuIRCVEFixes")
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    write_coquir(tmp_path / "CVEFixes", languages=row.pools, unasked=["java"])
    with pytest.raises(DataError, match="CVEFixes, java: no query has a relevant document here"):
        layouts.load_data(row)


def test_bar_exam_reads_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_BAR_EXAM_QA_PATH", str(tmp_path))
    for number, part in enumerate(("a", "b")):
        file = tmp_path / "data" / "passages" / f"{part}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [f'{number}{i}\t{part} passage {i}, said "so"' for i in range(8)]
        # A text that pandas would take for a missing one.
        rows[7] = f"{number}7\tNA"
        file.write_text("\n".join(["idx\ttext", *rows]) + "\n")
    for part, gold in (("test", "03"), ("train", "15"), ("validation", "12")):
        file = tmp_path / "data" / "qa" / f"{part}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        prompt = "" if part == "train" else f"A {part} story."
        file.write_text(f'prompt,question,answer,gold_idx\n{prompt},"Who wins, then?",A,{gold}\n')
    loaded = layouts.load_split(find("ReasonEmbedBarExamQAFull"))
    assert loaded["corpus"]["id"][:3] == ["00", "01", "02"]
    assert loaded["corpus"]["text"][7] == "NA"
    assert loaded["queries"]["text"][:] == [
        "A test story. Who wins, then?",
        "Who wins, then?",
        "A validation story. Who wins, then?",
    ]
    assert list(loaded["relevant_docs"].values()) == [{"03": 1}, {"15": 1}, {"12": 1}]


def test_a_missing_config_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_MIRB_PATH", str(tmp_path))
    write_mirb(tmp_path / "modup", titles=False)
    with pytest.raises(DataError, match=r"has no excluded_ids/\*-\*.parquet; download it"):
        layouts.load_split(find("ReasonEmbedMIRBMODup"))


@pytest.mark.skipif(not IMPLIRET.is_dir(), reason=f"{IMPLIRET} is not there")
@pytest.mark.parametrize(
    ("pool", "expected"),
    [("WorldKnowledgeMulti", (15.20, 33.20, 9.86)), ("TemporalMulti", (11.76, 26.73, 7.33))],
)
def test_impliret_has_its_published_scores(
    pool: str, expected: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bm25s = pytest.importorskip("bm25s", reason="needs the demo extra")
    monkeypatch.setenv("REASONEMBED_IMPLIRET_PATH", str(IMPLIRET))
    loaded = layouts.load_split(find(f"ReasonEmbedImpliRet{pool}"))
    assert len(loaded["corpus"]) == len(loaded["queries"]) == 1500
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(loaded["corpus"]["text"][:], stopwords="en", show_progress=False), show_progress=False
    )
    asked = bm25s.tokenize(loaded["queries"]["text"][:], stopwords="en", show_progress=False)
    found, _ = index.retrieve(asked, k=1500, show_progress=False, n_threads=1)
    places = np.array([int(np.flatnonzero(row == own)[0]) for own, row in enumerate(found)])
    top = places < 10
    scores = (np.where(top, 1 / np.log2(places + 2), 0), top, np.where(top, 1 / (places + 1), 0))
    assert [100 * part.mean() for part in scores] == pytest.approx(expected, abs=0.02)


def write_mm_bright(folder: Path, examples: Sequence[Mapping[str, Any]], documents: Sequence[Any]) -> None:
    write_lines(folder / "documents" / "academia.jsonl", documents)
    write_lines(folder / "examples" / "academia.jsonl", examples)


def test_numbers_are_ids_too_and_one_document_may_stand_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONEMBED_MM_BRIGHT_PATH", str(tmp_path))
    documents = [{"id": number, "content": f"text {number}"} for number in range(20)]
    examples = [{"id": 7, "query": "why?", "gold_ids": [1, 2], "negative_ids": [3]}]
    write_mm_bright(tmp_path, examples, documents)
    loaded = layouts.load_split(find("ReasonEmbedMMBrightAcademia"))
    assert loaded["relevant_docs"] == {"7": {"1": 1, "2": 1}}
    assert loaded["excluded_ids"] == {"7": ["3"]}
    # Not the documents 1 and 2, letter by letter.
    write_mm_bright(
        tmp_path, [{"id": "7", "query": "why?", "gold_ids": "12", "negative_ids": "13"}], documents
    )
    loaded = layouts.load_split(find("ReasonEmbedMMBrightAcademia"))
    assert (loaded["relevant_docs"], loaded["excluded_ids"]) == ({"7": {"12": 1}}, {"7": ["13"]})


def test_missing_texts_are_empty_and_missing_ids_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REASONEMBED_MM_BRIGHT_PATH", str(tmp_path))
    documents: list[dict[str, Any]] = [{"id": "d1", "content": "text"}, {"id": "d2", "content": None}]
    examples = [
        {"id": name, "query": text, "gold_ids": ["d1"], "negative_ids": None}
        for name, text in (("q1", "why?"), ("q2", None))
    ]
    write_mm_bright(tmp_path, examples, documents)
    loaded = layouts.load_split(find("ReasonEmbedMMBrightAcademia"))
    assert loaded["queries"]["text"][:] == ["why?", ""]
    assert loaded["corpus"]["text"][:] == ["text", ""]
    assert "documents/academia.jsonl have no text; they count as empty" in caplog.text
    assert "1 queries are empty: q2" in caplog.text
    write_mm_bright(tmp_path, examples, [*documents, {"id": None, "content": "text"}])
    with pytest.raises(DataError, match=r"documents/academia\.jsonl: 1 rows have no id; download"):
        layouts.load_split(find("ReasonEmbedMMBrightAcademia"))


@pytest.mark.parametrize("label", ["", "high", "0.5", "nan"])
def test_a_label_that_is_no_whole_number_is_named(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONEMBED_MATHNET_PATH", str(tmp_path))
    write_lines(tmp_path / "easy" / "corpus.jsonl", [{"_id": k, "text": t} for k, t in DOCUMENTS.items()])
    write_lines(tmp_path / "easy" / "queries.jsonl", [{"_id": k, "text": t} for k, t in QUERIES.items()])
    file = tmp_path / "easy" / "qrels" / "test.tsv"
    file.parent.mkdir()
    file.write_text(f"query-id\tcorpus-id\tscore\nq1\td1\t1.0\nq2\td2\t{label}\n")
    with pytest.raises(
        DataError, match=f"test.tsv, row 2: the label of query 'q2', document 'd2' is '{label}'"
    ):
        layouts.load_split(find("ReasonEmbedMathNetEasy"))
    # Nothing below the header.
    file.write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match=r"test\.tsv holds no rows; download it again"):
        layouts.load_split(find("ReasonEmbedMathNetEasy"))


def test_coquir_joins_the_rows_of_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    write_coquir(tmp_path / "SQLR2", languages=["go", "python"])
    rows = [
        {"qid": "q1", "pos-docids": ["x-go-1"], "neg-docids": ["x-go-2", "x-go-3"]},
        {"qid": "q1", "pos-docids": ["x-go-4"], "neg-docids": ["x-go-3", "x-go-5"]},
    ]
    write_parquet(tmp_path / "SQLR2" / "data" / "test-0.parquet", rows)
    loaded = layouts.load_split(find("ReasonEmbedCoQuIRSQLR2"))
    assert loaded["relevant_docs"] == {"q1": {"x-go-1": 1, "x-go-4": 1}}
    assert loaded["judged"]["q1"].worse == ("x-go-2", "x-go-3", "x-go-5")


def test_bar_exam_files_may_have_further_columns_and_questions_without_passage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REASONEMBED_BAR_EXAM_QA_PATH", str(tmp_path))
    for part in ("passages", "qa"):
        (tmp_path / "data" / part).mkdir(parents=True)
    passages = tmp_path / "data" / "passages"
    (passages / "a.tsv").write_text("idx\ttext\n1\tone\n2\ttwo\n")
    (passages / "b.tsv").write_text("faiss_id\ttext\tidx\n9\tthree\t3\n")
    (tmp_path / "data" / "qa" / "a.csv").write_text("prompt,question,gold_idx\np,q1,3\np,q2,\n")
    row = find("ReasonEmbedBarExamQAFull")
    loaded = layouts.load_split(row)
    assert dict(zip(loaded["corpus"]["id"], loaded["corpus"]["text"], strict=True)) == {
        "1": "one",
        "2": "two",
        "3": "three",
    }
    assert loaded["relevant_docs"] == {"question-0": {"3": 1}, "question-1": {}}
    assert "1 questions name no passage and are left out (question-1, counted from 0" in caplog.text
    (passages / "b.tsv").write_text("faiss_id\ttext\n9\tthree\n")
    with pytest.raises(DataError, match=r"b\.tsv has no column idx \(it has faiss_id, text\)"):
        layouts.load_split(row)
