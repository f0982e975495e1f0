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
SHORT = "[generate.word_weights]\n'<100' = 1.0\n"


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
        _, found = run_steps(tmp_path, server, SHORT)
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


def test_what_stands_around_a_query_goes_and_what_is_none_is_dropped(tmp_path: Path) -> None:
    good = "Why do the leaves of my maple turn red in a cold autumn?"

    def script(seen: Seen) -> Reply | str:
        if "<verdict>" in seen.text:
            return "<verdict>yes</verdict>"
        number = next(n for n in range(60) if document(n)[:60] in seen.text)
        own = document(100 + number, 15)
        written = {
            3: f"**Query:** {good}\n\n(Word count: 12)",
            4: "I'm sorry, but I cannot write a query from this document.",
            5: f"{own} " * 3,
            6: "Why?",
            7: document(901, 250),
            8: f"Query: {good}",
        }
        return f"<query>{written.get(number, own)}</query>"

    with StubServer(script) as server:
        run, found = run_steps(tmp_path, server, SHORT)
    rows = {row["source"]: row for row in found}
    dropped = {name: row["dropped"] for name, row in rows.items() if "dropped" in row}
    # The mended text is compared, so that a label hides no second copy.
    first, second = sorted(("d 3", "d 8"), key=lambda name: list(rows).index(name))
    assert dropped == {
        "d 4": "refusal",
        "d 5": "repeats itself",
        "d 6": "much shorter than asked",
        "d 7": "much longer than asked",
        second: "near-duplicate of another query",
    }
    assert rows[first]["query"] == good
    note = queries(run, run.config.subset[0]).note
    assert note is not None
    kinds = {"d 3": {"label before it": 1, "word count or level": 1}, "d 8": {"label before it": 1}}
    assert note["mended"] == kinds[first]


def test_how_far_from_the_asked_length_can_be_set(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        query = f"<query>{document(len(seen.text) * 31 + sum(map(ord, seen.text)), 30)}</query>"
        return "<verdict>yes</verdict>" if "<verdict>" in seen.text else query

    more = (
        "[sources]\nper_subset = 12\n[generate]\nlength_factor = {}\n[generate.word_weights]\n'300-400' = 1.0"
    )
    kept = []
    with StubServer(script) as server:
        for factor in (2.0, 1000.0):
            _, found = run_steps(tmp_path, server, more.format(factor))
            kept.append(sum("dropped" not in row for row in found))
        # Answers that are there are looked at again, not asked for again.
        assert sum("<query>" in seen.text for seen in server.seen) == 12
    assert kept == [0, 12]
