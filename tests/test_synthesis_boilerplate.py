"""What models put around a text goes; refusals, loops and wrong lengths are found; people's texts stay."""

from __future__ import annotations

import pytest

from reasonembed_mteb.synthesis.boilerplate import (
    far_from_length,
    refusal_to_write,
    repeats_itself,
    tidied,
    trimmed,
    word_count,
)

ASKED = "Why do the leaves of my maple turn red in a cold autumn but stay green in a warm one?"


@pytest.mark.parametrize(
    "text",
    [
        "Query: {}",
        "**Query:** {}",
        "**Query**: {}",
        "Query (PhD level): {}",
        "Question 1: {}",
        "### Query\n{}",
        "Query\n{}",
        "Final Query - {}",
        "*Query:*\n> {}",
        "[Query] {} [/Query]",
        "Q: {}",
        "Post: {}",
        "\u95ee\u9898\uff1a{}",
        "Frage: {}",
        "Sure! Here's a query that meets the requirements:\n\n{}",
        'Certainly! Below is the question at college level:\n"{}"',
        "Here is the query:\n{}",
        "Okay, here is your query.\n\n{}",
        "The query is: {}",
        "{}\n*40 words*",
        "{}\n\nWord count - 40",
        "Sure!\n{}",
        "{} (Word count: 40)",
        "{}\n\n(40 words)",
        "{}\n\n**Word Count:** 40 words",
        "{} [~18 words]",
        "{} (approximately 100-200 words)",
        "{}\nWord count: 18",
        "Word count: 18\n{}",
        "{}\n\u5b57\u6570\uff1a40",
        "{}\n\nThis query is 18 words long.",
        "{} (College level)",
        "{}\n\nEducation level: college",
        "{}\n\nNote: This query requires reasoning about chlorophyll.",
        "{}\n\nThis question tests whether pigments are understood.\nIt is hard.",
        "{}\n\nLet me know if you need another one!",
        "{}<|im_end|>",
        "<s>{}</s>",
        "```\n{}\n```",
        "```text\nQuery: {}\n```",
        "**{}**",
        '"{}"',
        "\u201c{}\u201d",
        "---\n{}\n---",
        'Final query: "{}" (Total words: 18)',
        "Title: Autumn\nQuery: {}",
        "**Topic:** Autumn leaves\n\n**Question:** {}",
        "Rewritten question: {}",
        "Approx. 120 words: {}",
        "~120 words:\n{}",
        "120 words\n{}",
    ],
)
def test_what_stands_around_a_query_goes(text: str) -> None:
    found = tidied(text.format(ASKED))
    assert found.text == ASKED
    assert found.mended


@pytest.mark.parametrize(
    "text", ["Reasoning: {}", "**Reasoning:**\n{}", "Here is my reasoning:\n{}\n(120 words)"]
)
def test_what_stands_around_reasoning_goes(text: str) -> None:
    assert tidied(text.format("Cold nights break down chlorophyll."), "reasoning").text.startswith("Cold")


@pytest.mark.parametrize(
    "text",
    [
        ASKED,
        "The question is: how do I sort by two keys? This query returns nothing:\n```sql\nSELECT 1\n```",
        "I'm sorry if this is basic, but I can't figure out why the sky is blue.",
        "I cannot create a table in Postgres; it says the name is taken. Why?",
        "I can't write to the file because it is locked by another process. What holds it?",
        "As an AI researcher I wonder why dropout helps.",
        "My document does not print. Which driver does the printer need?",
        'Why does "a" + "b" give "ab"',
        "**Given** two numbers, find the **sum**",
        "Note: the answer fits in 32 bits.\nWord problems need what?",
        "Sure, I know that ice floats, but why does it?",
        "What does [1] mean after a sentence",
        "Query plans differ between two servers. Why?",
        "Here is my setup. It has two disks.\nWhich one fails?",
        "The question is whether ice floats: does it?",
        "Write a summary of it in\n40 lines",
        "Title: what does it mean on a deed of sale?",
        "Title: rent\nMy landlord wants more of it. Question: may he?",
        "120 words: how do I sort them by their second letter?",
        "About 120 words is the limit here. How short can an abstract be?",
        "120 words are allowed,\nso what do I leave out?",
        "I won't be able to write for a week. Which exercises help my wrist?",
        "Ich kann meine Datei nicht erstellen. Woran liegt das?",
        "Ich kann diese Frage nicht beantworten: warum ist der Himmel blau?",
        "No puedo generar una clave. \u00bfPor qu\u00e9?",
        "Given nums = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1], find the longest run in x x x x x x x x",
        "For i in range(3):\n    print(i)\n    print(i)\n    print(i)\nwhy does this loop print each number "
        "three times and not once, when the body was meant to run for one of them alone and then to leave?",
    ],
)
def test_texts_of_people_stay_as_they_are(text: str) -> None:
    assert tidied(text).text == text
    assert refusal_to_write(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, but I can\u2019t help with this.",
        "I apologize, but I cannot fulfill this request.",
        "Sorry, I can't help with that.",
        "Unfortunately, I cannot provide a query.",
        "As an AI language model, I cannot create that.",
        "I cannot generate a query based on this document.",
        "I cannot write such a question because the text is too short.",
        "I am unable to create a question from the given text.",
        "I'm not able to help with that.",
        "I won't be able to help with this request.",
        "I won't be able to generate",
        "I won't be able to write a question about that topic",
        "I cannot generate.",
        "I must decline to write this.",
        "I cannot create that.",
        "I can't do that.",
        "It's not possible to create a query from this text.",
        "The document does not contain enough information to write a query.",
        "There is not enough information in the document to ask a question.",
        "Please provide the document.",
        "N/A",
        "No query.",
        "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u751f\u6210\u8fd9\u4e2a\u67e5\u8be2\u3002",
        "Es tut mir leid, aber ich kann nicht helfen.",
        "Ich kann diese Anfrage leider nicht beantworten.",
        "Ich kann Ihnen dabei nicht helfen.",
        "No puedo generar esa consulta.",
        "Je suis d\u00e9sol\u00e9, mais je ne peux pas aider.",
        "Lo siento, no puedo ayudar.",
    ],
)
def test_a_refusal_is_found(text: str) -> None:
    assert refusal_to_write(tidied(text).text) == "refusal"
    assert refusal_to_write(tidied(f"Query: {text}").text) in ("refusal", "no text")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no text"),
        ("...", "no text"),
        ("Your query here", "no text"),
        ("Why does [insert animal] sleep?", "placeholder"),
        ("A question of $level level", "placeholder"),
    ],
)
def test_what_is_no_text(text: str, why: str) -> None:
    assert refusal_to_write(text) == why


@pytest.mark.parametrize(
    "text",
    [
        f"{ASKED} " * 3,
        f"{ASKED} {ASKED}",
        "Why is it so? " * 3,
        "the " * 30,
        f"{ASKED} It grows" + " and then it grows" * 6,
        "\u4e3a\u4ec0\u4e48\u5929\u7a7a\u662f\u84dd\u8272\u7684\uff1f" * 4,
        "".join(f"Step {n}: the water rises in the stem of the plant. " for n in range(40)),
    ],
)
def test_a_loop_is_found(text: str) -> None:
    assert repeats_itself(text)


def test_lengths() -> None:
    assert word_count("a b c") == 3
    # Two characters a word.
    assert word_count("\u4e3a\u4ec0\u4e48\u5929\u7a7a\u662f\u84dd\u8272\u7684" * 4) == 18
    text = "word " * 150
    assert far_from_length(text, (300, 400), 2.0) is None
    assert far_from_length("word " * 149, (300, 400), 2.0) == "much shorter than asked"
    assert far_from_length("word " * 200, (10, 100), 2.0) is None
    assert far_from_length("word " * 201, (10, 100), 2.0) == "much longer than asked"


def test_a_text_is_cut_after_a_sentence() -> None:
    text = "One two. Three four five! Six 1.5 seven? Eight"
    cuts = {
        count: trimmed(text, lambda part, count=count: len(part.split()) <= count)
        for count in (9, 8, 7, 5, 4, 1)
    }
    assert cuts == {
        9: text,
        8: "One two. Three four five! Six 1.5 seven?",
        7: "One two. Three four five!",
        5: "One two. Three four five!",
        4: "One two.",
        1: None,
    }
