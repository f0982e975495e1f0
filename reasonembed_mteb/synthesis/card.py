"""The data card: what was made, from what, by whom, and what it cost; as text, JSON and pictures."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.escaping import markdown
from reasonembed_mteb.files import json_text, replacing, write_whole
from reasonembed_mteb.synthesis.agreement import agreements
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.format import formatted, formatted_file
from reasonembed_mteb.synthesis.generate import sources
from reasonembed_mteb.synthesis.shards import read_rows
from reasonembed_mteb.synthesis.steps import STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.synthesis.config import AskingSection, SubsetSection
    from reasonembed_mteb.synthesis.step import Run

_FIGURE = re.compile(r"[\d.,]+%?|nan|-")
_LABELS = (-1, 1, 2, 3, 4, 5)
_NOTE = ("rows", "kept", "dropped", "mended", "tokens")


def write_card(run: Run, subsets: Sequence[SubsetSection]) -> Path:
    """Write README.md, card.json and pictures/*.png beside the data.

    Args:
        run: Whose folder gets them.
        subsets: Those whose samples are there.

    Returns:
        The file README.md.
    """
    facts = {subset.name: _facts(run, subset) for subset in subsets}
    content = {"subsets": facts, "made_with": _made_with(run), "cost": _costs(run, facts)}
    write_whole(run.folder / "card.json", json_text(content))
    _draw(run.folder / "pictures", facts)
    write_whole(run.folder / "README.md", _text(run, content))
    return run.folder / "README.md"


def _facts(run: Run, subset: SubsetSection) -> dict[str, Any]:
    corpus = run.corpus(subset)
    parts = {name: part for step in STEPS.values() for name, part in step.parts(run, subset).items()}
    notes = {name: part.note for name, part in parts.items()}
    steps = {name: {key: note[key] for key in _NOTE if key in note} for name, note in notes.items() if note}
    note = formatted(run, subset) or {}
    steps["format"] = {key: value for key, value in note.items() if key not in ("fingerprint", "output")}
    labels, unjudged = _labels(run, subset)
    return {
        "corpus": {"documents": len(corpus), "fingerprint": corpus.fingerprint},
        "benchmark": {"queries": len(corpus.benchmark.queries), "gold": len(corpus.benchmark.gold)},
        "steps": steps,
        "targets": _targets(run, subset),
        "labels": labels,
        "unjudged": unjudged,
        "lengths": _lengths(formatted_file(run, subset)),
        "agreement": {name: asdict(found) for name, found in agreements(run, subset).items()},
        "instruction": run.domain(subset).instruction,
        "start": None if subset.start is None else subset.start.model_dump(exclude={"path"}),
    }


def _labels(run: Run, subset: SubsetSection) -> tuple[dict[str, int], dict[str, int]]:
    counts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    for row in labelled(run, subset).rows():
        counts.update(row["labels"])
        reasons.update(row.get("unjudged", {}))
    return {str(label): counts[label] for label in _LABELS}, dict(sorted(reasons.items()))


def _targets(run: Run, subset: SubsetSection) -> dict[str, dict[str, int]]:
    """Count what was asked for: target lengths and education levels."""
    words: Counter[str] = Counter()
    levels: Counter[str] = Counter()
    if run.own_parts(subset):
        return {}
    for row in sources(run, subset).rows():
        words[row["words"]] += 1
        levels[row["level"]] += 1
    section = run.config.generate
    return {
        "words": {name: words[name] for name in section.word_weights},
        "level": {name: levels[name] for name in section.level_weights},
    }


def _lengths(file: Path) -> dict[str, dict[str, Any]]:
    """Count words of queries and reasoning queries, and characters of documents."""
    found: dict[str, list[int]] = {"query words": [], "reasoning query words": [], "document characters": []}
    for row in read_rows(file):
        found["query words"].append(len(row["query"].split()))
        if "reasoning_query" in row:
            found["reasoning query words"].append(len(row["reasoning_query"].split()))
        found["document characters"] += map(len, [*row["pos"], *row["neg"]])
    return {name: _histogram(np.array(values)) for name, values in found.items() if values}


def _histogram(values: Any) -> dict[str, Any]:  # noqa: ANN401 - an array
    # The longest hundredth would leave the rest in a bar or two.
    top = max(1, int(np.percentile(values, 99)))
    counts, edges = np.histogram(np.minimum(values, top), bins=20, range=(0, top))
    return {
        "count": len(values),
        "mean": round(float(values.mean()), 1),
        "median": float(np.median(values)),
        "max": int(values.max()),
        "edges": [round(float(edge), 2) for edge in edges],
        "counts": counts.tolist(),
    }


def _made_with(run: Run) -> dict[str, Any]:
    """Say by what the data was made; no address and no key."""
    config = run.config
    asked = {"clean": config.clean, "generate": config.generate, "annotate": config.annotate}
    steps = {**asked, "reason": config.reason}
    return {
        "seed": config.seed,
        "prompts": {name: run.prompt(section, name).hash for name, section in sorted(steps.items())},
        "steps": {
            name: {**_settings(section), **_asked(run, section)}
            for name, section in steps.items()
            if not getattr(section, "skip", False)
        },
        "sources": config.sources.model_dump(),
        "mine": config.mine.model_dump(exclude={"device", "batch_size", "block"})
        | {"model": _retriever(run)},
        "format": config.format.model_dump(),
        "second annotator": None
        if config.annotate.second_endpoint is None
        else config.endpoint(config.annotate.second_endpoint).model,
    }


def _asked(run: Run, section: AskingSection) -> dict[str, Any]:
    """Return what is asked and how far: a known annotator brings its own length."""
    return {"max_tokens": run.sampling(section)[2], "model": run.config.endpoint(section.endpoint).model}


def _settings(section: AskingSection) -> dict[str, Any]:
    """Return a table's values; of a path only the last part, as the card leaves the machine."""
    values = section.model_dump()
    if values.get("gold") is not None:
        values["gold"] = Path(values["gold"]).name
    if values.get("train_model") is not None:
        values["train_model"] = _short(values["train_model"])
    return values


def _retriever(run: Run) -> str | None:
    mine = run.config.mine
    return None if mine.model is None or mine.retriever == "bm25" else _short(mine.model)


def _short(model: str) -> str:
    """Return a model's name; of a directory only the last two folders, as the card leaves the machine."""
    return "/".join(Path(model).parts[-2:])


def _costs(run: Run, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Add up tokens by step; a price where the endpoint has both prices."""
    annotate = run.config.annotate
    asking = {part: step.name for step in STEPS.values() for part in step.asked if part != "second"}
    names = {part: (step, getattr(run.config, step).endpoint) for part, step in asking.items()}
    if annotate.second_endpoint is not None:
        names["second"] = ("second annotator", annotate.second_endpoint)
    found: dict[str, dict[str, Any]] = {}
    for part, (step, name) in names.items():
        tokens = [fact["steps"].get(part, {}).get("tokens", [0, 0]) for fact in facts.values()]
        prompt, completion = (sum(pair[side] for pair in tokens) for side in (0, 1))
        if not prompt + completion:
            continue
        endpoint = run.config.endpoint(name)
        price = endpoint.cost(prompt, completion)
        cost = None if price is None else round(price, 6)
        found[step] = {"prompt_tokens": prompt, "completion_tokens": completion, "cost": cost}
    return found


def _draw(folder: Path, facts: Mapping[str, Any]) -> None:
    """Draw labels and lengths, one picture each, a panel a subset."""
    _bars(folder / "labels.png", "Labels", {name: fact["labels"] for name, fact in facts.items()})
    for what in ("query words", "reasoning query words", "document characters"):
        found = {name: fact["lengths"][what] for name, fact in facts.items() if what in fact["lengths"]}
        if found:
            _histograms(folder / f"{what.replace(' ', '-')}.png", what, found)


def _figure(count: int, title: str) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "synthesis") from None
    columns = min(count, 4)
    rows = -(-count // columns)
    # Without pyplot: no window, no state left behind.
    figure = Figure(figsize=(3.2 * columns, 2.5 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels


def _save(figure: Any, file: Path) -> None:  # noqa: ANN401 - matplotlib's Figure
    with replacing(file) as part:
        # The library's version would change the bytes.
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})


def _bars(file: Path, title: str, counts: Mapping[str, Mapping[str, int]]) -> None:
    figure, panels = _figure(len(counts), title)
    for panel, (name, found) in zip(panels, counts.items(), strict=False):
        panel.bar(list(found), list(found.values()), color="#33658a")
        panel.set_title(name, fontsize=9)
        panel.set_ylabel("pairs", fontsize=8)
        panel.tick_params(labelsize=8)
    _save(figure, file)


def _histograms(file: Path, title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    figure, panels = _figure(len(found), title[0].upper() + title[1:])
    for panel, (name, one) in zip(panels, found.items(), strict=False):
        panel.stairs(one["counts"], one["edges"], fill=True, color="#33658a")
        panel.axvline(one["median"], color="#f26419", linewidth=1)
        panel.set_title(f"{name}, median {one['median']:g}", fontsize=9)
        panel.tick_params(labelsize=8)
    _save(figure, file)


def _text(run: Run, content: Mapping[str, Any]) -> str:
    facts: Mapping[str, Any] = content["subsets"]
    pictures = sorted((run.folder / "pictures").glob("*.png"))
    lines = [
        "---",
        "configs:",
        *(
            line
            for name in facts
            for line in (f"- config_name: {name}", f"  data_files: formatted/{name}-formatted.jsonl")
        ),
        "---",
        "# Reasoning-intensive retrieval data",
        *_origin(facts),
        "",
        "Rows have `prompt` (the retrieval instruction), `query`, `reasoning_query` (the query followed by "
        "reasoning about it; missing where none was written), `pos`, `neg`, `train_group_size` and "
        "`batch_size`.",
        "",
        "## Counts",
        *_counts(facts),
        "",
        "## Dropped",
        *_dropped(facts),
        "",
        "## Mended",
        *_mended(facts),
        "",
        "## Labels and lengths",
        *_lengths_table(facts),
        "",
        *(f"![{file.stem}](pictures/{file.name})" for file in pictures),
        "",
        *_agreement_lines(facts),
        "## Made with",
        *_made_lines(run, content),
        "",
        "Gold and excluded documents of the benchmark were no sources, and queries that nearly equal one of "
        "its queries were dropped. Where the corpus is a benchmark's own, a model trained on this data is "
        "not zero-shot there.",
        "",
    ]
    return "\n".join(lines)


# What a user can bring, by the step that it is followed by.
_BROUGHT = {
    "mine": "queries, and what was known of their documents, were",
    "annotate": "queries and candidates were",
    "reason": "queries and labels were",
    "format": "queries, labels and reasoning queries were",
}


def _origin(facts: Mapping[str, Any]) -> list[str]:
    """Say who wrote and judged what."""
    lines = [
        "Queries were written by a language model from documents of a corpus; candidates come from a search "
        "of the whole corpus without the source, and a language model judged each. Made by ReMixer (arXiv "
        "2510.08252) as `reasonembed synthesize` implements it; the prompts are that package's own."
    ]
    lines += [
        f"Not so in {markdown(name)}: its {_BROUGHT[fact['start']['at']]} brought by whoever made the data."
        for name, fact in facts.items()
        if fact["start"] is not None
    ]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    made = [list(map(_cell, row)) for row in [head, *rows]]
    made.insert(1, ["---"] + ["---:"] * (len(head) - 1))
    return ["| " + " | ".join(row) + " |" for row in made]


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    # Figures need no escapes, by which they would only be harder to read.
    text = str(value)
    return text if _FIGURE.fullmatch(text) else markdown(text)


_COUNTED = ("clean", "sources", "drafts", "queries", "mined")


def _counts(facts: Mapping[str, Any]) -> list[str]:
    head = ["subset", "documents", "clean", "sources", "written", "queries", "mined", "samples", "pos", "neg"]
    rows = []
    for name, fact in facts.items():
        steps = fact["steps"]
        # What a user brought in place of a step was not counted there.
        kept = [steps.get(part, {}).get("kept", "-") for part in _COUNTED]
        made = [steps["format"][key] for key in ("kept", "positives", "negatives")]
        rows.append([name, fact["corpus"]["documents"], *kept, *made])
    return _table(head, rows)


def _dropped(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, part, why, count]
        for name, fact in facts.items()
        for part, note in fact["steps"].items()
        # What the drafts dropped is among the queries, too.
        if part != "drafts"
        for why, count in note["dropped"].items()
    ]
    rows += [
        [name, "labels", f"pair not judged: {why}", count]
        for name, fact in facts.items()
        for why, count in fact["unjudged"].items()
    ]
    return _table(["subset", "step", "reason", "rows"], rows) if rows else ["Nothing."]


def _mended(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, part, kind, count]
        for name, fact in facts.items()
        for part, note in fact["steps"].items()
        for kind, count in note.get("mended", {}).items()
    ]
    return _table(["subset", "step", "what was taken away", "rows"], rows) if rows else ["Nothing."]


def _lengths_table(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, *fact["labels"].values(), *(f"{one['median']:g}" for one in fact["lengths"].values())]
        for name, fact in facts.items()
    ]
    lengths = next(iter(facts.values()))["lengths"] if facts else {}
    medians = [f"median {what}" for what in lengths]
    width = max((len(row) for row in rows), default=0)
    head = ["subset", *(f"label {label}" for label in _LABELS), *medians]
    return _table(head, [row + ["-"] * (width - len(row)) for row in rows])


def _agreement_lines(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            name,
            other,
            found["pairs"],
            f"{found['linear']:.3f}",
            f"{found['quadratic']:.3f}",
            f"{found['exact']:.1%}",
            f"{found['same_side']:.1%}",
        ]
        for name, fact in facts.items()
        for other, found in fact["agreement"].items()
    ]
    head = ["subset", "against", "pairs", "kappa, linear", "kappa, quadratic", "equal", "same side"]
    return ["## Agreement", *_table(head, rows), ""] if rows else []


def _made_lines(run: Run, content: Mapping[str, Any]) -> list[str]:
    made, costs = content["made_with"], content["cost"]
    rows = []
    for step, section in made["steps"].items():
        cost = costs.get(step, {"prompt_tokens": 0, "completion_tokens": 0, "cost": None})
        price = "-" if cost["cost"] is None else f"{cost['cost']:.2f}"
        tokens = [cost["prompt_tokens"], cost["completion_tokens"], price]
        sampling = f"{section['temperature']:g} / {section['top_p']:g}"
        rows.append([step, section["model"], sampling, made["prompts"][step][:12], *tokens])
    head = ["step", "model", "temperature / top-p", "prompt hash", "tokens in", "tokens out", "cost"]
    mine = run.config.mine
    retriever = " and ".join(filter(None, [_retriever(run), "BM25" if mine.retriever != "dense" else None]))
    return [
        *_table(head, rows),
        "",
        f"Candidates: top {mine.top_k} by {markdown(retriever)}. Seed {made['seed']}. "
        "Everything in figures: `card.json`.",
    ]
