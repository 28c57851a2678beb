"""Several machines in one: nodes in namespaces of their own, joined by a bridge.

A node has its own network address, processes and host name, as a container has; it ends with its
first process, and all of them end with the process that has made the network, however that ends.
The machine's own network is left alone.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

GATEWAY = "10.77.0.1"
"""The bridge's own address, which all nodes reach; theirs are 10.77.x.y."""
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
NETWORK = """
set -e
ip link set lo up
ip link add br0 type bridge
ip address add $0/16 dev br0
ip link set br0 up
echo ready
exec cat
"""
NODE = """
set -e
hostname "$0"
mount --bind "$HOSTS" /etc/hosts
read -r _
exec "$@"
"""
"""It waits for a line: until then it has no network."""


def missing() -> str | None:
    """Why there can be no nodes here; None if there can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    try:
        with network(Path("/tmp")):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here ({error})"


@dataclass
class Node:
    """A machine: its first process is ``command``."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    """Outside of the node's namespaces."""
    pid: int
    """Of its first process, as seen from outside."""

    @property
    def link(self) -> str:
        """The bridge's end of its cable."""
        return f"to-{self.name}"

    @property
    def is_up(self) -> bool:
        """Whether its first process is alive."""
        return self.process.poll() is None

    def processes(self, *words: str) -> list[int]:
        """Its processes whose command has all the words in it, as seen from outside."""
        found = []
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_text().replace("\0", " ")
                is_one = os.readlink(entry / "ns/pid") == own
                if is_one and all(word in command for word in words):
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """End its first process, and so all of them at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Network:
    """A bridge in a namespace of its own, and the nodes at it."""

    folder: Path
    """For the nodes' names."""
    pid: int
    """A process in it."""
    nodes: list[Node] = field(default_factory=list)

    def start_node(
        self, name: str, address: str, environment: Mapping[str, str], log: Path, *command: str
    ) -> Node:
        """A new node whose first process is the command; what that prints is added to the log."""
        hosts = self.folder / f"hosts-{name}"
        hosts.write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        spaces = ("--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child")
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*DIES_WITH_US, "unshare", *spaces, "sh", "-c", NODE, name, *command],
                env={**environment, "HOSTS": str(hosts)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        node = Node(name, address, process, only_child(process.pid))
        self.nodes = [other for other in self.nodes if other.name != name] + [node]
        end = f"netns {node.pid} mtu 1500"
        self._ip(f"link add {node.link} type veth peer name eth0 {end}")
        self._ip(f"link set {node.link} master br0 up")
        for words in (
            "link set lo up",
            f"address add {address}/16 dev eth0",
            "link set eth0 up",
            f"route add default via {GATEWAY}",  # a node's own address is found by its route
        ):
            _run("nsenter", f"--net=/proc/{node.pid}/ns/net", "ip", *words.split())
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        return node

    def cut(self, node: Node) -> None:
        """Pull a node's cable: what was sent to it, or by it, is gone without a word."""
        self._ip(f"link set {node.link} down")

    @contextlib.contextmanager
    def partition(self, one: Node, other: Node) -> Iterator[None]:
        """Within the block two nodes do not hear each other, while both hear all others."""
        for is_apart in ("on", "off"):
            for node in (one, other):
                with contextlib.suppress(subprocess.CalledProcessError):  # it has ended meanwhile
                    self._ip(f"link set {node.link} type bridge_slave isolated {is_apart}")
            if is_apart == "on":
                yield

    def listen(self) -> socket.socket:
        """A listening socket of this process at the gateway's address."""
        made: list[socket.socket] = []

        def work() -> None:  # in a thread, which alone enters
            _enter(self.pid, "net")
            made.append(socket.create_server((GATEWAY, 0), backlog=128))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def _ip(self, words: str) -> None:
        _run("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *words.split())


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A bridge without nodes; those that it has at the end go with it. Raises OSError or
    CalledProcessError where there can be none."""
    process = subprocess.Popen(
        [*DIES_WITH_US, "unshare", "--net", "sh", "-ec", NETWORK, GATEWAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"ready\n":
            said = process.stderr.read().decode().strip()
            raise OSError(f"unshare and ip: {said}")
        made = Network(folder, process.pid)
        try:
            yield made
        finally:
            for node in made.nodes:
                node.kill()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def in_node(pid: int) -> None:
    """Go on as a process of a node, one of whose processes is ``pid``; this process itself waits
    for that one and ends as it does. Of one thread only."""
    folder = Path.cwd()
    _enter(pid, "net", "uts", "pid", "mnt")
    child = os.fork()  # only children are in the new space of processes
    if child == 0:
        os.chdir(folder)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _enter(pid: int, *spaces: str) -> None:
    """Have the calling thread enter namespaces of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened = [os.open(f"/proc/{pid}/ns/{space}", os.O_RDONLY) for space in spaces]
    for space in opened:
        if libc.setns(space, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "setns")
        os.close(space)


def only_child(pid: int, seconds: float = 10) -> int:
    """The child of a process, once it has one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise OSError(f"unshare has started nothing within {seconds:.0f} s")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
