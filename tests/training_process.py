"""A training run in a process of its own, which can be killed at a chosen moment.

python tests/training_process.py RECIPE.json DATA OUTPUT CACHE [--resume] [--kill WHERE STEP] [--spoil STEP]
    [--say-saves] [--as-gpus]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.training import checkpoints, losses, trainer
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train


def die(*_: object, **__: object) -> None:
    """End as by a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, step: int) -> None:
    """Kill this process at a step: `between` checkpoints, in the `middle` of one, `before` its mark."""
    cls = trainer.RedapterTrainer
    name = {"between": "end_step", "middle": "_save_optimizer_and_scheduler"}.get(where)
    if name is None:
        whole = checkpoints.mark_whole

        def mark(folder: Path) -> None:
            die() if folder.name == f"checkpoint-{step}" else whole(folder)

        trainer.mark_whole = mark  # type: ignore[attr-defined]
        return
    own = getattr(cls, name)

    def armed(self: trainer.RedapterTrainer, *args: object) -> None:
        if self.state.global_step == step:
            die()
        own(self, *args)

    setattr(cls, name, armed)


def spoil(step: int) -> None:
    """Have the last process' losses be NaN from a step on, and the others' not."""
    own = losses.RedapterLoss._loss_of  # type: ignore[attr-defined]

    def spoiled(self: losses.RedapterLoss, *arguments: object, **options: object) -> object:
        loss = own(self, *arguments, **options)
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        return loss + float("nan") if last and self.global_step >= step else loss

    losses.RedapterLoss._loss_of = spoiled  # type: ignore[method-assign]


def say_saves() -> None:
    """Print which process writes a checkpoint."""
    own = ReasonEmbed.save

    def save(self: ReasonEmbed, path: str, *arguments: object, **options: object) -> None:
        if "checkpoint" in str(path):
            # One write, so that two processes' lines do not mix.
            os.write(1, f"saved by {os.environ['RANK']}\n".encode())
        own(self, path, *arguments, **options)  # type: ignore[arg-type]

    ReasonEmbed.save = save  # type: ignore[method-assign,assignment]


def as_gpus() -> None:
    """Have accelerate take CPU processes for GPUs, on which alone it shares weights out."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from reasonembed_mteb.training import building, run

    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    # The processes still speak by gloo; what comes after is what runs on GPUs.
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    building.on_cpu = run.on_cpu = lambda: False  # type: ignore[attr-defined]
    run.check_sharding_devices = lambda *_: None  # type: ignore[attr-defined]


def main() -> None:
    """Run."""
    recipe, data, output, cache, *options = sys.argv[1:]
    if "--kill" in options:
        index = options.index("--kill")
        arm(options[index + 1], int(options[index + 2]))
    if "--spoil" in options:
        spoil(int(options[options.index("--spoil") + 1]))
    if "--as-gpus" in options:
        as_gpus()
    if "--say-saves" in options:
        say_saves()
    content = json.loads(Path(recipe).read_text(encoding="utf-8"))
    done = train(
        check_recipe(content, "tiny"), [data], Path(output), cache=Path(cache), resume="--resume" in options
    )
    print(json.dumps({"steps": done.steps, "resumed": done.resumed}), flush=True)
    if "--as-gpus" in options:
        # Everything is written. Groups of gloo in place of a GPU's may abort a process that takes them down.
        os._exit(0)


if __name__ == "__main__":
    main()
