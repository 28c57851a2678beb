"""The Ray cluster: joined if ``RAY_ADDRESS`` is set, else started on this machine.

A submitted job learns its cluster's address only from ``RAY_ADDRESS``, so that variable decides
and nothing else. A cluster started here lives as long as the process and listens on loopback
only (see ``glray/ray/__init__.py``). Starting one takes 4–5 s, joining one 1–2 s.
"""

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path

import ray

# The one private name of Ray in glray: what is free on each node has no public function without
# Ray's dashboard. tests/ray/test_cluster.py says what to do where it is gone.
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources

import glray
from glray.errors import UserError
from glray.machine import free_memory_bytes, usable_cpus, usable_memory_bytes
from glray.progress import working
from glray.ray import LOOPBACK
from glray.ray.session_folder import session_folder
from glray.report.formats import counted
from glray.spec.compute import ComputeSpec

OBJECT_STORE_BYTES = 2**30
"""Most that a cluster started here keeps in its object store: blocks pass through, none stay."""

LEAST_STORE_BYTES = 100 * 2**20
"""Ray starts with no less than 75 MiB."""

FREED_SECONDS = 5.0
"""How long what a group of workers has left may take to be free again."""
SAY_AGAIN_SECONDS = 600.0
"""How often a wait that has no limit is said."""

START_TIMEOUT = "timed out during startup"
"""What Ray's error says when a node was too slow to start."""

Say = Callable[[str], None]

_own_node: str | None = None
"""The node that this process has started as its own cluster."""


def connect(compute: ComputeSpec, say: Say) -> None:
    """Join or start the cluster; nothing where this process already has one.

    Raises UserError if ``RAY_ADDRESS`` names no cluster that answers.
    """
    if ray.is_initialized():
        return
    address = joined_address()
    if address is None:
        with working("starting Ray on this machine"):
            _start(say)
    else:
        say(f"joining the Ray cluster at {address}")
        with working(f"waiting for the Ray cluster at {address}"):
            _check_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    with working("importing Ray Data"):
        from ray.data import DataContext  # takes seconds: not before Ray's processes start

    # After its import, which sets its logger to print every execution. What fails is raised, too.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    DataContext.get_current().enable_progress_bars = False


def stop_own() -> None:
    """Stop the cluster that this process has started, if it has. At exit Ray would stop it too,
    but for 5 s and without a line that says so."""
    if ray.is_initialized() and is_own_cluster():
        with working("stopping Ray"):
            ray.shutdown()


def joined_address() -> str | None:
    """The address of the cluster to join, or None to start one on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def is_own_cluster() -> bool:
    """Whether this process has started the cluster that it is connected to."""
    return _own_node == ray.get_runtime_context().get_node_id()


def require_workers(compute: ComputeSpec, say: Say) -> None:
    """Return once the connected cluster has room for ``compute``'s workers, the fewest of them.

    A cluster started here has what it has; a joined one is waited for, up to
    ``compute.wait_seconds``, and asked to grow if it can. Raises UserError with both numbers.
    """
    bundle = worker_resources(compute)
    asked = compute.least_workers
    room = workers_with_room(bundle, _nodes())
    if room >= asked:
        return
    if joined_address() is None:
        raise UserError(f"{_shortage(compute, room)} on this machine; {_remedy(room)}")
    each = f"each takes {_each(compute)}"
    room = _room_in_time(bundle, asked, "worker", compute, lambda text: say(f"{text}; {each}"))
    if room < asked:
        raise UserError(
            f"{_shortage(compute, room)} on the joined cluster after {compute.wait_seconds} s; "
            f"{_remedy(room)}, or wait longer with --set compute.wait_seconds=SECONDS"
        )


def require_cpu(compute: ComputeSpec, say: Say) -> None:
    """Return once the connected cluster has a CPU for tasks; else as ``require_workers``."""
    task = {"CPU": 1.0}
    if workers_with_room(task, _nodes()):
        return
    if not _room_in_time(task, 1, "CPU", compute, say):
        raise UserError(
            f"the Ray cluster has 0 CPUs after {compute.wait_seconds} s: no task of glray prepare "
            "can run there; add a node that has some, or wait longer with --set "
            "compute.wait_seconds=SECONDS"
        )


def free_cpus() -> str:
    """How many of the cluster's CPUs nobody uses now, in words."""
    free = sum(node.get("CPU", 0) for node in available_resources_per_node().values())
    return f"{free:.0f} of the cluster's {sum(n.get('CPU', 0) for n in _nodes()):.0f} CPUs are free"


def starting_workers(compute: ComputeSpec) -> str:
    """What is waited for until workers say something themselves, and what there is for them."""
    if joined_address() is None:
        return "starting the workers"
    workers = counted(compute.least_workers, "worker")
    return f"starting {workers} of {_each(compute)}: {free_cpus()}"


def worker_resources(compute: ComputeSpec) -> dict[str, float]:
    """What one worker takes of a node, in Ray's words."""
    cpus = {"CPU": float(compute.cpus_per_worker)}
    return cpus | {"GPU": 1.0} if compute.use_gpu else cpus


def workers_with_room(bundle: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """How many workers fit, each whole on one node; ``nodes`` are the nodes' resources."""
    return sum(
        min(math.floor(node.get(name, 0) / amount) for name, amount in bundle.items())
        for node in nodes
    )


def has_free_workers(compute: ComputeSpec, stop: threading.Event) -> bool:
    """Whether the fewest workers of one group fit into what is free, or ``stop`` is set; what a
    group has just left is free after a moment, which is waited for."""
    asked = compute.least_workers
    wait = partial(wait_for_room, asked, lambda: _free_workers(compute, stop), lambda _: None)
    return wait(wait_seconds=FREED_SECONDS) >= asked


def wait_for_free_workers(
    compute: ComputeSpec, num_groups: int, say: Say, stop: threading.Event
) -> None:
    """Return once there is room for a group, as after a node was lost, or once ``stop`` is set;
    however long that takes, which is said. The cluster is asked to grow to ``num_groups`` groups.
    """
    bundle, asked = worker_resources(compute), compute.least_workers

    def room() -> int:
        # Again each time: another group that no longer waits has withdrawn it.
        request_resources(bundles=[bundle] * asked * num_groups)
        return _free_workers(compute, stop)

    try:
        wait_for_room(
            asked,
            room,
            lambda text: say(f"{text}; each takes {_each(compute)}"),
            say_seconds=SAY_AGAIN_SECONDS,
        )
    finally:
        request_resources(bundles=[])


def _free_workers(compute: ComputeSpec, stop: threading.Event) -> int:
    """For how many workers there is free room; enough for a group if ``stop`` is set."""
    if stop.is_set():
        return compute.least_workers
    free = list(available_resources_per_node().values())
    return workers_with_room(worker_resources(compute), free)


def groups_with_room(compute: ComputeSpec) -> int:
    """How many groups of ``compute``'s workers fit in the connected cluster at once. Others may use
    a joined one: of it counts what is free now."""
    nodes = _nodes() if joined_address() is None else list(available_resources_per_node().values())
    return workers_with_room(worker_resources(compute), nodes) // compute.least_workers


def _room_in_time(
    bundle: dict[str, float], asked: int, what: str, compute: ComputeSpec, say: Say
) -> int:
    """For how many ``bundle``s there is room once it is for as many as ``asked``, or when
    ``compute.wait_seconds`` are over; the cluster is asked to grow."""
    request_resources(bundles=[bundle] * asked)  # an autoscaler adds nodes only for a request
    try:
        return wait_for_room(
            asked,
            lambda: workers_with_room(bundle, _nodes()),
            say,
            wait_seconds=compute.wait_seconds,
            what=what,
        )
    finally:
        request_resources(bundles=[])


def wait_for_room(
    asked: int,
    room_now: Callable[[], int],
    say: Say,
    *,
    what: str = "worker",
    wait_seconds: float = math.inf,
    say_seconds: float = 30,
    poll_seconds: float = 1,
) -> int:
    """The room found once it suffices, or when ``wait_seconds`` are over; without them it waits as
    long as it takes.

    Says both numbers at once and then every ``say_seconds``.
    """
    start = time.monotonic()
    next_say = 0.0
    while (room := room_now()) < asked and (waited := time.monotonic() - start) < wait_seconds:
        if waited >= next_say:
            limit = f" of {wait_seconds:.0f}" if math.isfinite(wait_seconds) else ""
            say(
                f"waiting for {counted(asked, what)}, the cluster has room for {room} "
                f"({waited:.0f}{limit} s)"
            )
            next_say += say_seconds
        time.sleep(poll_seconds)
    return room


def _start(say: Say) -> None:
    """A cluster of this machine alone, without dashboard, on loopback, with its own token."""
    # Ray would write a token for this into the home directory, readable by all, and later
    # ask every `ray start` for it.
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Nobody drains the one node; to watch for it would be one more process to start, 5 s of a core.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    store_bytes = max(LEAST_STORE_BYTES, min(OBJECT_STORE_BYTES, usable_memory_bytes() // 8))
    folder = session_folder(store_bytes, say)
    try:
        # Ray has each worker import from the current folder first: from there it must be this
        # glray, and no module of a person's folder that happens to have a library's name.
        with chdir(Path(glray.__file__).parents[1]):
            ray.init(
                address="local",
                num_cpus=usable_cpus(),  # Ray itself would take all that the node has
                _memory=free_memory_bytes(),
                object_store_memory=store_bytes,
                _temp_dir=str(folder),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray has no name for it
        if START_TIMEOUT not in str(error):
            raise
        raise UserError(
            f"Ray did not start here within its limit of 30 s (load {os.getloadavg()[0]:.0f} on "
            f"{usable_cpus()} CPUs): nothing was started; repeat the command when the "
            "machine is less busy"
        ) from None
    if os.environ.get(LOOPBACK) == "0" and ray.util.get_node_ip_address() != "127.0.0.1":
        ray.shutdown()
        raise UserError(
            "Ray was imported before glray.ray, and so would listen on this machine's network "
            f"address: import glray.ray first, or set {LOOPBACK}=0"
        )
    global _own_node
    _own_node = ray.get_runtime_context().get_node_id()


def _check_answers(address: str) -> None:
    """Raise UserError if nothing listens at ``address`` (Ray itself would try for minutes)."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon or not port.isdigit():
        raise UserError(
            f"RAY_ADDRESS {address!r} is not HOST:PORT of a cluster's head (port 6379 by default): "
            "glray runs on the cluster, not through a client; unset it and use ray job submit "
            f"--address {address} -- python -m glray run PIPELINE"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no cluster answers there ({error}); correct it, or unset it "
            "to run on this machine"
        ) from None


def _each(compute: ComputeSpec) -> str:
    """What a worker takes, in words."""
    return f"{counted(compute.cpus_per_worker, 'CPU')}{' and a GPU' if compute.use_gpu else ''}"


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _shortage(compute: ComputeSpec, room: int) -> str:
    each = f"{compute.cpus_per_worker} CPUs" + (" and 1 GPU" if compute.use_gpu else "")
    nodes = "; ".join(
        f"{node.get('CPU', 0):.0f} CPUs, {node.get('GPU', 0):.0f} GPUs" for node in _nodes()
    )
    return (
        f"compute.num_workers {compute.least_workers} of {each} each: room for {room} "
        f"(nodes: {nodes})"
    )


def _remedy(room: int) -> str:
    if room:
        return f"ask for less with --set compute.num_workers={room}"
    return "ask for less with --set compute.cpus_per_worker=1 or compute.use_gpu=false"
