"""All of glray that imports Ray: the cluster, Ray Data, Ray Train, Ray Tune.

Ray reads these variables when it is imported, when a process starts or when training starts, so
they are set here; a person's own values win.
"""

import os

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 a node that this process starts has the address 127.0.0.1, and so all of its ports: Ray's
default on macOS and Windows (``_node_ip_address`` is replaced by the machine's own address)."""

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with the new one Ray Tune prints boxes even when silent
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the controller's next poll
    # Ray ends idle processes beyond the number of CPUs, actors counted: each stage's reads would
    # start theirs again, 3 s of a core that training needs.
    "RAY_num_workers_soft_limit": "16",
    # A warning of Ray's that the actors of worker groups and trials set off on a small machine.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",
    "RAY_worker_niceness": "0",  # at Ray's 15 whatever else runs here would slow training first
}
if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
    _DEFAULTS[LOOPBACK] = "0"
    # Below `uv run` Ray would pack the folder and have uv build an environment for each worker. On
    # this machine they start with the driver's Python and so with its packages. On the nodes of a
    # joined cluster there may be no other way to them: there Ray's default stays.
    _DEFAULTS["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
