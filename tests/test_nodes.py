"""Machines in namespaces: what the tests of losses stand on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .nodes import GATEWAY, Node, missing, network


def test_nodes_hear_each_other_unless_they_are_parted(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    log = tmp_path / "log"
    with network(tmp_path) as bridge, bridge.listen() as listening:

        def hears(node: Node, address: str) -> bool:
            port = listening.getsockname()[1]
            code = f"import socket; socket.create_connection(({address!r}, {port}), 0.2)"
            inside = ["nsenter", f"--net=/proc/{node.pid}/ns/net", sys.executable, "-c", code]
            said = subprocess.run(inside, stderr=subprocess.PIPE, text=True).stderr
            return not said or "ConnectionRefusedError" in said  # nothing listens at a node

        one, other = (
            bridge.start_node(f"node-{last}", f"10.77.0.{last}", os.environ, log, "sleep", "60")
            for last in (2, 3)
        )
        assert hears(one, GATEWAY)
        assert hears(one, other.address)
        with bridge.partition(one, other):
            assert hears(one, GATEWAY)
            assert not hears(one, other.address)
        assert hears(one, other.address)
        bridge.cut(other)
        assert not hears(one, other.address)
        (sleeping,) = other.processes("sleep")
        other.kill()
        assert not other.is_up
        assert not Path(f"/proc/{sleeping}").exists()
        (last,) = one.processes("sleep")
    assert not Path(f"/proc/{last}").exists()
