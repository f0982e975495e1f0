"""The card of a trained model: recipe, counts and scores; no training text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.escaping import markdown
from reasonembed_mteb.models.saving import READERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.training.schema import Recipe

_CITATION = """```bibtex
@article{chen2025reasonembed,
    title={ReasonEmbed: Enhanced Text Embeddings for Reasoning-Intensive Document Retrieval},
    author={Chen, Jianlyu and Lan, Junwei and Li, Chaofan and Lian, Defu and Liu, Zheng},
    journal={arXiv preprint arXiv:2510.08252},
    year={2025}
}
```"""


def public_name(name: str) -> str:
    """Return a model's name without the folders of this machine.

    Args:
        name: Hub name or path.
    """
    path = Path(name).expanduser()
    return path.name or path.resolve().name if path.is_absolute() or path.exists() else name


def base_of_folder(name: str) -> str | None:
    """Return the base model that a directory's own card names, or None.

    The recipe's ``model.base`` says what the recipe was written for, not what lies in a directory.

    Args:
        name: Directory.
    """
    file = Path(name).expanduser() / "README.md"
    if not file.is_file():
        return None
    head = file.read_text(encoding="utf-8").partition("---")[2].partition("\n---")[0]
    found = re.search(r"^base_model:\s*(?:-\s*)?[\"']?([^\"'\s]+)", head, re.MULTILINE)
    return public_name(found[1]) if found else None


def write_toml(content: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested mappings of plain values as TOML.

    Args:
        content: Strings, numbers, truth values, lists of strings and mappings of them; None is left out.
        prefix: Where in the document they stand.
    """
    plain = {
        key: value for key, value in content.items() if value is not None and not isinstance(value, dict)
    }
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in content.items():
        if isinstance(value, dict) and value:
            name = f"{prefix}{_key(key)}"
            lines += ["", f"[{name}]", write_toml(value, f"{name}.")]
    return "\n".join(lines)


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:  # noqa: ANN401 - a recipe's value
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's strings and truth values are TOML's, but for the infinite.
    return str(value) if isinstance(value, float) else json.dumps(value)


def card(recipe: Recipe, run: Mapping[str, Any], prompts: Mapping[str, str | None]) -> str:
    """Write a model card.

    Args:
        recipe: What was trained, and how.
        run: The run's record: ``counts``, ``steps``, ``weighted_steps``, ``left_out_steps``,
            ``reasoning_cut``, ``world_size``, ``versions``, ``scores``.
        prompts: The model's prompts.

    Returns:
        Markdown with its YAML head.
    """
    # A loss that never weighed is InfoNCE, whatever the recipe asks for.
    made = run.get("steps_made", run["steps"])
    weighted = run.get("weighted_steps", made) if recipe.loss.kind == "redapter" else 0
    base = public_name(recipe.model.name)
    if base != recipe.model.name and (upon := base_of_folder(recipe.model.name)):
        base = f"{base} (a local model upon {upon})"
    head = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if base == recipe.model.name:
        head.append(f"base_model: {json.dumps(base)}")
    tags = [
        "sentence-transformers",
        "feature-extraction",
        "retrieval",
        "reasonembed",
        f"loss:{'redapter' if weighted else 'infonce'}",
    ]
    head += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    shown = markdown(base)
    parts = [
        f"# {shown}, trained with the recipe {markdown(recipe.name)}",
        f"{shown}, trained with {_loss(recipe, weighted, made)} on {run['world_size']} process(es)."
        f"{_left_out(run)}{_chosen(run)}",
        "## Use",
        _usage(recipe, prompts),
        "## Data",
        _count_table(run["counts"]),
        *([_cut_line(run["reasoning_cut"])] if run.get("reasoning_cut") else []),
        *(["## Scores during training", _score_table(run["scores"])] if run.get("scores") else []),
        "## Recipe",
        "```toml\n" + write_toml(_public(recipe)).strip() + "\n```",
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "## Citation",
        _CITATION,
    ]
    return "\n".join(head) + "\n\n".join(parts) + "\n"


def _loss(recipe: Recipe, weighted: int, steps: int) -> str:
    """Say which loss was really used, and how long."""
    if weighted:
        name, rest = "Redapter's reasoning-intensity weighted InfoNCE", ""
        if weighted < steps:
            rest = f" ({weighted:,} of them weighted, the others plain InfoNCE)"
    else:
        name, rest = "InfoNCE", ""
        if recipe.loss.kind == "redapter":
            rest = " (the recipe asks for Redapter, but no step was weighted by reasoning intensity)"
    return f"{name} (arXiv 2510.08252) in {steps:,} steps{rest}"


def _left_out(run: Mapping[str, Any]) -> str:
    """Say how many steps changed nothing, their loss or gradient not being finite."""
    count = run.get("left_out_steps", 0)
    steps = "One step was" if count == 1 else f"{count:,} of these steps were"
    return f" {steps} left out, the loss or the gradient not being finite." if count else ""


def _chosen(run: Mapping[str, Any]) -> str:
    """Say which checkpoint the model is, where it is not the last."""
    best = run.get("best")
    return (
        f" It is the checkpoint of step {best['step']:,}, the best by {markdown(best['by'])}." if best else ""
    )


def _public(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump()
    name = public_name(recipe.model.name)
    content["model"]["name"] = name
    if name != recipe.model.name or name != recipe.model.base:
        # What the recipe was written for was not trained.
        content["model"].pop("base")
    return content


def _usage(recipe: Recipe, prompts: Mapping[str, str | None]) -> str:
    example = next((name for name, text in prompts.items() if text and name != "document"), None)
    argument = f", prompt_name={json.dumps(example)}" if example and example != "query" else ""
    shown = "queries take an instruction before them, one of the model's `prompts`; documents are bare."
    if not recipe.model.template:
        shown = "queries and documents are encoded as they are."
    return (
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("path/to/this/folder")\n'
        f'queries = model.encode_query(["Why is the sky blue?"]{argument})\n'
        'documents = model.encode_document(["Rayleigh scattering ..."])\n'
        "model.similarity(queries, documents)\n```\n\n"
        f"Reads with {READERS}.\n\n"
        f"In training {shown} Lengths in training: {recipe.data.query_tokens} tokens a query, "
        f"{recipe.data.document_tokens} a document"
        + (f", {recipe.data.reasoning_limit} a reasoning query." if recipe.loss.kind == "redapter" else ".")
    )


def _cut_line(cuts: Mapping[str, float]) -> str:
    shown = ", ".join(f"{markdown(name)} {share:.1%}" for name, share in cuts.items())
    return f"Share of the reasoning that was cut away by its length, mean of the rows: {shown}."


def _count_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = list(dict.fromkeys(name for one in counts.values() for name, number in one.items() if number))
    lines = ["| subset | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for subset, one in counts.items():
        cells = " | ".join(f"{one.get(name, 0):,}" for name in names)
        lines.append(f"| {markdown(subset)} | {cells} |")
    return "\n".join(lines)


def _score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| step | task | metric | score |", "|---:|---|---|---:|"]
    lines += [
        f"| {one['step']} | {markdown(one['task'])} | {markdown(one['metric'])} | "
        f"{100 * float(one['score']):.2f} |"
        for one in scores
    ]
    return "\n".join(lines)
