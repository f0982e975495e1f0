"""Sources, their draw, and which queries are refused."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from remixer_script import answer, document, make_config, write_corpus, write_lines
from stub_server import StubServer

from reasonembed_mteb.synthesis.config import LEVEL_WEIGHTS, WORD_WEIGHTS, GenerateSection
from reasonembed_mteb.synthesis.generate import _target, points_at_a_text, queries, sources
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

STEPS = ("clean", "generate")


@pytest.mark.parametrize(
    "query",
    [
        "What does this passage say?",
        "In the above text, why?",
        "Explain the excerpt's claim.",
        "According to the document, what follows?",
        "Why, as described in the article, does it?",
        "Use the given context.",
        "From the text above, derive it.",
        "What does that last paragraph mean?",
    ],
)
def test_a_query_that_points_at_a_text_is_found(query: str) -> None:
    assert points_at_a_text(query)


@pytest.mark.parametrize(
    "query",
    [
        "How does the passage of time feel?",
        "How do I parse text in a document with lxml?",
        "In an article I read that moths seek light. Why?",
        "What is the context of the French revolution?",
        "Which documents do I need for a visa?",
    ],
)
def test_a_query_that_stands_on_its_own_is_not(query: str) -> None:
    assert points_at_a_text(query) is None


def test_targets_are_drawn_by_the_weights_and_the_seed() -> None:
    section = GenerateSection()
    drawn = [_target(section, 42, "biology", f"d{n}") for n in range(6000)]
    for key, weights in (("words", WORD_WEIGHTS), ("level", LEVEL_WEIGHTS)):
        counts = Counter(one[key] for one in drawn)
        for name, weight in weights.items():
            share = weight / sum(weights.values())
            # Four standard deviations.
            assert abs(counts[name] / 6000 - share) < 4 * (share * (1 - share) / 6000) ** 0.5
    assert drawn == [_target(section, 42, "biology", f"d{n}") for n in range(6000)]
    assert drawn != [_target(section, 43, "biology", f"d{n}") for n in range(6000)]
    only = GenerateSection(word_weights={"<100": 1.0})
    assert {_target(only, 1, "s", str(n))["words"] for n in range(20)} == {"<100"}


def run_steps(tmp_path: Path, server: StubServer, more: str = "") -> tuple[Run, list[dict[str, object]]]:
    config = make_config(tmp_path, server.base_url, more)
    synthesize(config, STEPS)
    run = Run(config, make_client(config))
    return run, list(queries(run, config.subset[0]).rows(dropped=True))


def test_gold_excluded_and_short_documents_are_no_sources(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    # The gold document's text under another id, and a near-duplicate of document 5.
    extra = [{"id": "copy", "text": document(0).upper()}, {"id": "near", "text": document(5) + " Tail."}]
    extra += [{"id": "long", "text": document(77, 2000)}]
    rows = (tmp_path / "corpus.jsonl").read_text(encoding="utf-8")
    write_lines(tmp_path / "more.jsonl", extra)
    joined = rows + (tmp_path / "more.jsonl").read_text(encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text(joined, encoding="utf-8")
    with StubServer(answer) as server:
        run, found = run_steps(tmp_path, server, "[clean]\nskip = true")
    names = [row["source"] for row in found]
    assert len(names) == len(set(names)) == 57
    assert not {"d 0", "d 1", "d 2", "copy", "long"} & set(names)
    # One of the two, whichever the draw met first.
    assert len({"d 5", "near"} & set(names)) == 1
    subset = run.config.subset[0]
    note = sources(run, subset).note
    assert note is not None
    assert note["dropped"] == {"near-duplicate of another source": 1}
    # Another seed, another order.
    assert names != sorted(names)


def test_at_most_so_many_sources_and_another_seed_draws_others(tmp_path: Path) -> None:
    chosen = {}
    with StubServer(answer) as server:
        for seed in (42, 43):
            config = make_config(
                tmp_path, server.base_url, "[clean]\nskip = true\n[sources]\nper_subset = 10"
            )
            config = config.model_copy(update={"seed": seed, "output": f"out{seed}"})
            synthesize(config, STEPS)
            run = Run(config, make_client(config))
            chosen[seed] = [row["source"] for row in sources(run, config.subset[0]).rows()]
    assert [len(names) for names in chosen.values()] == [10, 10]
    assert set(chosen[42]) != set(chosen[43])


def test_refused_queries_are_counted(tmp_path: Path) -> None:
    leaked = document(900, 50)

    def script(seen: Seen) -> Reply | str:
        if "<verdict>" in seen.text:
            return "<verdict>yes</verdict>"
        text = seen.text.partition("<document>")[2]
        number = next(n for n in range(60) if document(n)[:60] in text)
        return {
            3: "<query>What does this passage mean by it?</query>",
            4: f"<query>{leaked}</query>",
            5: "no tags at all",
            6: "<query>one</query><query>two</query>",
            7: "<query>The same question of seven and of eight, word for word.</query>",
            8: "<query>The same question of seven and of eight, word for word!</query>",
        }.get(number, f"<query>{document(100 + number)}</query>")

    with StubServer(script) as server:
        _, found = run_steps(tmp_path, server)
    dropped = {row["source"]: row["dropped"] for row in found if "dropped" in row}
    assert dropped.pop("d 3") == "points at a given text"
    assert dropped.pop("d 4") == "nearly a benchmark query"
    assert dropped.pop("d 5") == dropped.pop("d 6") == "unparsable query"
    assert dropped.popitem()[1] == "near-duplicate of another query"
    assert not dropped
    assert len(found) == 57


def test_the_prompt_holds_document_target_and_sampling(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        run_steps(tmp_path, server)
        asked = [seen.body for seen in server.seen if "<query>" in seen.text]
    assert asked
    assert {(body["temperature"], body["top_p"], body["seed"]) for body in asked} == {(1.0, 0.6, 42)}
    text = asked[0]["messages"][-1]["content"]
    assert any(document(n) in text for n in range(60))
    assert any(f"{level} level" in text for level in LEVEL_WEIGHTS)
    assert "question-and-answer site about biology" in text
