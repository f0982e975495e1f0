"""Work on the machines of a Ray cluster; speculation, retries and lost machines are Ray's."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from reasonembed_mteb.errors import ReasonEmbedError, missing_extra, one_line
from reasonembed_mteb.files import PACKAGES, package_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import ModuleType, TracebackType

Source = TypeVar("Source")
Item = TypeVar("Item")
Result = TypeVar("Result")

# An address that starts Ray on this machine, and one that finds what runs on it.
LOCAL, AUTO = "local", "auto"
_CLIENT = "ray://"
_SECONDS = 10.0
# Readers take so little of a processor, and workers leave it, that both find room at once.
_LITTLE, _NEARLY = 0.001, 0.98


@dataclass(frozen=True)
class ClusterChoice:
    """Which cluster, and what of it.

    Attributes:
        address: ``host:port``, ``ray://host:port``, ``auto`` for the one that this machine is part of, or
            ``local`` to start Ray here.
        workers: How many; None for what there is room for.
        threads: Of a worker; None shares the processors out.
        gpus_per_worker: None for one, where the cluster has any.
    """

    address: str
    workers: int | None = None
    threads: int | None = None
    gpus_per_worker: float | None = None


def _ray() -> ModuleType:
    # It would count who uses it, and warn of what its own data sets do.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_extra("ray[data]", "distributed") from error
    module: ModuleType = ray
    return module


class RayMachines:
    """Workers on a Ray cluster.

    Args:
        choice: Which cluster, and what of it.

    Raises:
        ReasonEmbedError: If there is no such cluster, it has too little room, or other versions.
    """

    def __init__(self, choice: ClusterChoice) -> None:
        """Connect, and look at every machine."""
        self._choice = choice
        self._ray = _ray()
        self._connect()
        try:
            self._check_versions()
            self.gpus, self.workers, self.threads = self._room()
        except BaseException:
            self._ray.shutdown()
            raise

    def __enter__(self) -> RayMachines:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster; one that was started here is stopped."""
        self._ray.shutdown()

    def _connect(self) -> None:
        from reasonembed_mteb.encoding.plan import usable_cores

        address = self._choice.address
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": False}
        try:
            if address == LOCAL:
                cores = max(usable_cores(), (self._choice.workers or 1) * (self._choice.threads or 1))
                self._ray.init(num_cpus=cores, include_dashboard=False, **quiet)
                return
            _check_reachable(address)
            self._ray.init(address=address, **quiet)
        except ReasonEmbedError:
            raise
        except Exception as error:
            # Ray raises what its parts raise.
            msg = (
                f"no Ray cluster at {address!r} can be joined ({one_line(error)}); start one with `ray start "
                "--head`, give its host:port, or --cluster local for this machine"
            )
            raise ReasonEmbedError(msg) from error

    def _check_versions(self) -> None:
        """Refuse machines on which other versions would compute other vectors."""
        from reasonembed_mteb.distributed import probe

        ray = self._ray
        ray.cloudpickle.register_pickle_by_value(probe)
        try:
            task = ray.remote(num_cpus=0, max_retries=3)(probe.installed)
            affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            asked = [
                task.options(scheduling_strategy=affinity(node, soft=False)).remote(PACKAGES)
                for node in nodes
            ]
            found = ray.get(asked, timeout=600)
        finally:
            ray.cloudpickle.unregister_pickle_by_value(probe)
        check_versions(package_versions(), found)

    def _room(self) -> tuple[float, int, int]:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        gpus = [float(node.get("GPU", 0)) for node in nodes]
        return share_out(self._choice, cores, gpus)

    def work(
        self,
        sources: Sequence[Source],
        produce: Callable[[Source], Iterable[Item]],
        make: Callable[[], Callable[[Item], Result]],
    ) -> Iterator[Result]:
        """See `reasonembed_mteb.distributed.processes.Machines.work`: Ray Data reads, actors compute.

        Raises:
            ReasonEmbedError: What a worker raised, or that workers die one after the other.
        """
        data = self._ray.data
        done = self._items(sources, produce).map_batches(
            _Applying,
            fn_constructor_args=(make,),
            batch_size=1,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=self.threads * _NEARLY,
            num_gpus=self.gpus,
        )
        with _explained(self._ray):
            for row in done.iter_rows():
                yield row["result"]

    def read(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """See `reasonembed_mteb.distributed.processes.Machines.read`.

        Raises:
            ReasonEmbedError: What the function raised, or that the cluster gave up.
        """
        yield from self._alone(sources, function, _LITTLE)

    def compute(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """See `reasonembed_mteb.distributed.processes.Machines.compute`: each source is a task.

        Raises:
            ReasonEmbedError: What the function raised, or that the cluster gave up.
        """
        yield from self._alone(sources, function, float(self.threads))

    def actors(self, make: Callable[..., Any], held: Any) -> list[Any]:  # noqa: ANN401 - any object
        """Start an actor on each worker.

        Args:
            make: Called there with what is held.
            held: Sent to the cluster once.

        Returns:
            Handles, which `ask` takes; the actors end with them.
        """
        reference = self._ray.put(held)
        holder = self._ray.remote(
            num_cpus=self.threads * _NEARLY, num_gpus=self.gpus, max_restarts=-1, max_task_retries=-1
        )(_Holding)
        return [holder.remote(make, reference) for _ in range(self.workers)]

    def ask(self, actors: Sequence[Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Share calls out among actors.

        Args:
            actors: See `actors`.
            calls: The arguments of each.

        Yields:
            What each call returned, in their order.

        Raises:
            ReasonEmbedError: What an actor raised, or that the cluster gave up.
        """
        pool = self._ray.util.ActorPool(actors)
        with _explained(self._ray):
            yield from pool.map(lambda actor, call: actor.call.remote(*call), calls)

    def _alone(self, sources: Sequence[Any], function: Callable[[Any], Any], cpus: float) -> Iterator[Any]:
        with _explained(self._ray):
            for row in self._items(sources, partial(_only, function), cpus).iter_rows():
                yield row["item"]

    def _items(
        self, sources: Sequence[Any], produce: Callable[[Any], Iterable[Any]], cpus: float = _LITTLE
    ) -> Any:  # noqa: ANN401 - ray.data.Dataset
        """Return the items of all sources as a data set that is read while it is used."""
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        # Each item alone, so that the next worker that is free takes it.
        context.target_max_block_size = 1
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = data.from_items([{"source": one} for one in sources], override_num_blocks=len(sources))
        return rows.map_batches(_Producing(produce), batch_size=1, batch_format="numpy", num_cpus=cpus)


def _only(function: Callable[[Any], Any], source: Any) -> Iterator[Any]:  # noqa: ANN401 - any source
    yield function(source)


class _Producing:
    """Reads the items of a batch of one source, one row an item."""

    def __init__(self, produce: Callable[[Any], Iterable[Any]]) -> None:
        self._produce = produce

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for source in batch["source"]:
            for item in self._produce(source):
                yield {"item": [item]}


class _Applying:
    """An actor: what is made once, and called for each row."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        return {"result": [self._function(item) for item in batch["item"]]}


class _Holding:
    """An actor around what is made on its machine."""

    def __init__(self, make: Callable[..., Any], held: Any) -> None:  # noqa: ANN401 - any object
        self._made = make(held)

    def call(self, *arguments: Any) -> Any:  # noqa: ANN401 - what the object returns
        return self._made.encode(*arguments)


@contextlib.contextmanager
def _explained(ray: Any) -> Iterator[None]:  # noqa: ANN401 - the module
    """Raise our own error that lies within Ray's, or say Ray's in a line."""
    try:
        yield
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        own = own_error(error)
        if own is not None:
            raise own from error
        msg = (
            f"the cluster gave up: {one_line(error)}; what is written stays, and the same command goes on "
            "with it"
        )
        raise ReasonEmbedError(msg) from error


def own_error(error: BaseException) -> ReasonEmbedError | None:
    """Return the error of ours that an error of Ray's carries, or None.

    Args:
        error: What Ray raised.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, ReasonEmbedError):
            # Ray makes a class that is both ours and its own, with the traceback for a message.
            cause = getattr(one, "cause", None)
            return cause if isinstance(cause, ReasonEmbedError) else one
        waiting += [getattr(one, "cause", None), one.__cause__, one.__context__]
    return None


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing answers; Ray itself would try for minutes."""
    if address == AUTO:
        return
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdecimal():
        msg = (
            f"--cluster {address!r} is no address: give host:port, ray://host:port, auto for the cluster "
            "that this machine is part of, or local to start Ray here"
        )
        raise ReasonEmbedError(msg)
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        msg = (
            f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}); start one "
            "with `ray start --head`, or correct the address"
        )
        raise ReasonEmbedError(msg) from error


def check_versions(here: dict[str, str], there: Sequence[tuple[str, dict[str, str]]]) -> None:
    """Refuse machines that have other versions of what vectors depend on.

    Args:
        here: Versions by package.
        there: Each machine's name, and its versions.

    Raises:
        ReasonEmbedError: If one differs; the message names both versions and the machine.
    """
    for host, versions in there:
        for package, wanted in here.items():
            found = versions.get(package)
            if _plain(found) != _plain(wanted):
                has = f"has {package} {found}" if found else f"has no {package}"
                msg = (
                    f"the machine {host} {has}, and this one {wanted}: vectors would differ; install "
                    f'"{package}=={_plain(wanted)}" there, or start from a machine with its versions'
                )
                raise ReasonEmbedError(msg)


def _plain(version: str | None) -> str | None:
    """Return a version without its build, such as torch's cpu and cu129."""
    return version.partition("+")[0] if version else version


def share_out(choice: ClusterChoice, cores: Sequence[int], gpus: Sequence[float]) -> tuple[float, int, int]:
    """Return GPUs of a worker, workers, and threads of a worker.

    Args:
        choice: What was asked for.
        cores: Processors of each machine.
        gpus: GPUs of each machine.

    Raises:
        ReasonEmbedError: If there is too little room; Ray would wait for more for ever.
    """
    asked = choice.gpus_per_worker
    each = (1.0 if any(gpus) else 0.0) if asked is None else asked
    machines = sum(count > 0 for count in cores)
    room = sum(int(count // each) for count in gpus) if each else machines
    workers = choice.workers or room

    def fitting(threads: int) -> int:
        """Return how many workers of so many threads there is room for."""
        pairs = zip(cores, gpus, strict=True)
        return sum(min(c // threads, int(g // each)) if each else c // threads for c, g in pairs)

    most = range(max(cores, default=1), 1, -1)
    threads = choice.threads or next((count for count in most if fitting(count) >= workers), 1)
    if not workers or workers > fitting(threads):
        msg = (
            f"the cluster has {sum(cores)} processors and {sum(gpus):g} GPUs on {len(cores)} machines, "
            f"room for {fitting(threads)} workers of {threads} threads and {each:g} GPUs, not {workers}; "
            "give fewer --workers, --threads or --gpus-per-worker, or add machines"
        )
        raise ReasonEmbedError(msg)
    return each, workers, threads
