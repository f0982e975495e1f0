"""The tables say what the protocol says; the expected strings are written out again here."""

from __future__ import annotations

import pytest

from reasonembed_mteb.errors import UnknownNameError, unknown_name
from reasonembed_mteb.retrieval import rows as tables

POSTS = {
    "Biology": "a Biology",
    "EarthScience": "an Earth Science",
    "Economics": "an Economics",
    "Psychology": "a Psychology",
    "Robotics": "a Robotics",
    "Stackoverflow": "a Stack Overflow",
    "SustainableLiving": "a Sustainable Living",
}
SHORT = {
    key: f"Given {post} post, retrieve relevant passages that help answer the post."
    for key, post in POSTS.items()
} | {
    "Leetcode": "Given a Coding problem, retrieve relevant examples that help answer the problem.",
    "Pony": "Given a Pony question, retrieve relevant passages that help answer the question.",
    "Aops": "Given a Math problem, retrieve relevant examples that help answer the problem.",
    "TheoremQAQuestions": "Given a Math problem, retrieve relevant examples that help answer the problem.",
    "TheoremQATheorems": "Given a Math problem, retrieve relevant theorems that help answer the problem.",
}
LONG = {
    key: f"Given {post} post, retrieve relevant documents that help answer the post."
    for key, post in POSTS.items()
} | {"Pony": "Given a Pony question, retrieve relevant documents that help answer the question"}
R2MED = {
    "Biology": "Given a Biology post, retrieve relevant passages that help answer the post.",
    "Bioinformatics": "Given a Bioinformatics post, retrieve relevant passages that help answer the post.",
    "MedicalSciences": "Given a Medical Science post, retrieve relevant passages that help answer the post.",
    "MedXpertQAExam": "Given a Medical Exam, retrieve relevant passages that help answer the exam.",
    "MedQADiag": "Given a Medical Exam, retrieve relevant passages that help answer the exam.",
    "PMCTreatment": "Given a Clinical Case, retrieve relevant passages that help answer the case.",
    "PMCClinical": "Given a Clinical Case, retrieve similar cases that help diagnose the case.",
    "IIYiClinical": "Given a Clinical Case, retrieve similar cases that help diagnose the case.",
}
REWRITTEN = ("Gpt4Reason", "Claude3OpusReason", "Gemini10Reason", "GritReason", "Llama370bReason")

EXPECTED = (
    {f"ReasonEmbedBright{key}": text for key, text in SHORT.items()}
    | {f"ReasonEmbedBright{key}{suffix}": text for key, text in SHORT.items() for suffix in REWRITTEN}
    | {f"ReasonMini{key}": text for key, text in SHORT.items()}
    | {f"Bright{key}Retrieval": text for key, text in SHORT.items()}
    | {
        name: SHORT[key]
        for key in POSTS
        for name in (f"BrightPro{key}Retrieval", f"ReasonEmbedBrightPro{key}")
    }
    | {f"ReasonEmbedBright{key}Long": text for key, text in LONG.items()}
    | {f"Bright{key}LongRetrieval": text for key, text in LONG.items()}
    | {f"ReasonEmbedR2MED{key}": text for key, text in R2MED.items()}
    | {f"R2MED{key}Retrieval": text for key, text in R2MED.items()}
)


def test_every_instruction_is_the_protocols() -> None:
    found = {
        name: row.instruction
        for row in tables.load_rows()
        for name in row.all_names
        if row.family in ("BRIGHT", "BRIGHT-Pro", "R2MED", "ReasonMini")
    }
    assert found == EXPECTED
    assert {name: tables.task_instructions()[name] for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize("subset", ["law", "math", "history", "easy", "W_Multi", "godot"])
def test_common_words_name_no_task(subset: str) -> None:
    """A training file law.jsonl must not be given another benchmark's instruction in silence."""
    assert tables.row_of_subset(subset) is None
    with pytest.raises(UnknownNameError, match=f"unknown task '{subset}'"):
        tables.instruction_for(subset)


def test_subsets_of_the_papers_benchmarks_name_their_tasks() -> None:
    named = {"biology": "ReasonEmbedBrightBiology", "PMC-Treatment": "ReasonEmbedR2MEDPMCTreatment"}
    for subset, name in named.items():
        row = tables.row_of_subset(subset)
        assert row is not None
        assert row.name == tables.find(subset).name == name
    assert tables.row_of_subset("ReasonEmbedBrightBiology") is None


def test_counts_and_separate_benchmarks() -> None:
    counts = {name: len(rows) for name, rows in tables.benchmarks().items()}
    # The others are counted with the suite.
    papers = ("BRIGHT", "R2MED", "ReasonMini")
    assert {name: n for name, n in counts.items() if tables.benchmarks()[name][0].family in papers} == {
        "BRIGHT(ReasonEmbed)": 12,
        "BRIGHT-long(ReasonEmbed)": 8,
        "R2MED(ReasonEmbed)": 8,
        "ReasonMini": 12,
        "BRIGHT-gpt4_reason(ReasonEmbed)": 12,
        "BRIGHT-claude-3-opus_reason(ReasonEmbed)": 12,
        "BRIGHT-Gemini-1.0_reason(ReasonEmbed)": 12,
        "BRIGHT-grit_reason(ReasonEmbed)": 12,
        "BRIGHT-llama3-70b_reason(ReasonEmbed)": 12,
    }
    for name, rows in tables.benchmarks().items():
        assert len({row.queries_config.replace(row.subset, "") for row in rows}) == 1, name


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ReasonEmbedBrightBiology", "max_tokens", 8192),
        ("ReasonEmbedR2MEDPMCTreatment", "max_tokens", 512),
        ("ReasonEmbedR2MEDPMCTreatment", "path", "R2MED/PMC-Treatment"),
        ("ReasonEmbedBrightBiologyLong", "main_score", "recall_at_1"),
        ("ReasonEmbedBrightBiologyLong", "corpus_config", "long_documents"),
        ("ReasonEmbedBrightAopsGritReason", "path", "mteb/BRIGHT"),
        ("ReasonEmbedBrightAopsGritReason", "queries_path", "xlangai/BRIGHT"),
        ("ReasonEmbedBrightAopsGritReason", "queries_revision", "a75a0eb483f6a5233a6efc2d63d71540a4443dfb"),
        ("ReasonEmbedBrightAopsGritReason", "mteb_name", "BrightAopsRetrieval"),
        ("ReasonMiniAops", "mteb_name", None),
    ],
)
def test_rows_say_what_differs(name: str, field: str, value: object) -> None:
    assert getattr(tables.find(name), field) == value


def test_max_tokens_follow_the_task_not_the_package() -> None:
    assert tables.max_tokens_for("R2MEDBiologyRetrieval") == 512
    assert tables.max_tokens_for("BrightAopsRetrieval") == 8192
    assert tables.max_tokens_for("SomethingElse", default=77) == 77


def test_a_subset_means_its_short_instruction() -> None:
    assert tables.instruction_for("theoremqa_theorems") == SHORT["TheoremQATheorems"]
    assert tables.instruction_for("pony") == SHORT["Pony"]
    assert tables.instruction_for("PMC-Clinical") == R2MED["PMCClinical"]


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonEmbedBrightBiology'"):
        tables.find("reasonembedbrightbiolgy")
    with pytest.raises(UnknownNameError, match="did you mean 'biology'"):
        tables.instruction_for("bioligy")
    far = unknown_name("fusion", "zzz", ["rrf", "dbsf"])
    assert str(far) == "unknown fusion 'zzz'; known: dbsf, rrf"
    many = unknown_name("column", "zzz", [f"c{n}" for n in range(9)])
    assert str(many).endswith("c6, c7 ...")
