"""Draw the scores of a result folder as bars, one group per task.

    python examples/plot_results.py results scores.png

Needs matplotlib: pip install "reasonembed-mteb[report]"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def read_scores(folder: Path) -> dict[str, dict[str, float]]:
    """Return main scores by model and task from MTEB's own JSON files."""
    scores: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("results/*/*/*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if "task_name" in content:
            first = next(iter(content["scores"].values()))[0]
            model = file.parts[-3].replace("__", "/")
            scores.setdefault(model, {})[content["task_name"]] = 100 * first["main_score"]
    return scores


def main() -> None:
    """Read, draw, save."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    scores = read_scores(folder)
    if not scores:
        sys.exit(f"no results in {folder}/results: run `reasonembed demo --output-folder {folder}` first")
    tasks = sorted({task for found in scores.values() for task in found})
    order = sorted(scores, key=lambda model: sum(scores[model].values()))
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(order)
    for index, model in enumerate(order):
        places = np.arange(len(tasks)) + (index - (len(order) - 1) / 2) * width
        axes.bar(places, [scores[model].get(task, 0) for task in tasks], width, label=model)
    axes.set_xticks(
        np.arange(len(tasks)), [task.removeprefix("ReasonMini") for task in tasks], rotation=35, ha="right"
    )
    axes.set_ylabel("nDCG@10, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="upper left", ncols=len(order))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
