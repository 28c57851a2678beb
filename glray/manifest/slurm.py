"""A script of Slurm's ``sbatch``: its ``#SBATCH`` lines and its commands.

Options as in sbatch(1), each with its value after ``=`` or a blank. Slurm has no schema.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from glray.errors import UserError
from glray.manifest.nodes import (
    Manifest,
    NodeGroup,
    assignments,
    command_in,
    installed_glray,
    words_of,
)

SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "G": "gpus"}
LEAST_NOTICE_SECONDS = 60
"""A checkpoint begins at a logging boundary and has to be written."""


def read_slurm(path: Path, text: str) -> Manifest:
    """The manifest of a Slurm script. Raises UserError."""
    options = _options(text)
    joined = re.sub(r"\\\n", " ", text)
    lines = [line.strip() for line in joined.splitlines() if not line.lstrip().startswith("#")]
    commands = (command_in(words_of(line)) for line in lines)
    nodes = _number(path, "nodes", options.get("nodes", "1").split("-")[0])
    group = NodeGroup(
        place="#SBATCH",
        fewest=nodes,
        most=nodes,
        cpus=_number(path, "cpus-per-task", options.get("cpus-per-task", "1"))
        * _number(path, "ntasks-per-node", options.get("ntasks-per-node", "1")),
        gpus=_gpus_per_node(path, options, nodes),
        image=options.get("container-image"),
        environment=assignments(line for line in lines if line.startswith(("export ", "env "))),
        # The environment of who submits is passed on unless the script says otherwise.
        has_credentials=options.get("export", "ALL").upper() != "NONE",
        shared_folders=("/",),
    )
    return Manifest(
        path=path,
        groups=(group,),
        command=next((command for command in commands if command is not None), None),
        sees_local_files=True,
        glray_version=installed_glray(joined),
        own_findings=tuple(_findings(path, options, lines, group)),
    )


def seconds_of(text: str) -> int:
    """Seconds of a time limit: ``minutes``, ``m:s``, ``h:m:s``, ``d-h``, ``d-h:m``, ``d-h:m:s``.

    Raises ValueError.
    """
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(days) * 86_400 + hours * 3600 + minutes * 60 + seconds
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def _options(text: str) -> dict[str, str]:
    """The options of the ``#SBATCH`` lines by their long names; empty for a flag."""
    found: dict[str, str] = {}
    for line in re.findall(r"^#SBATCH\s+(.+)$", text, flags=re.MULTILINE):
        for name, value in re.findall(r"(?<!\S)-{1,2}([a-zA-Z-]+)(?:[= ]+([^\s#-][^\s#]*))?", line):
            found[SHORT.get(name, name)] = value
    return found


def _number(path: Path, option: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{path}: #SBATCH --{option}={text}: not a number, so nothing is compared")
    return int(text)


def _gpus_per_node(path: Path, options: dict[str, str], nodes: int) -> int:
    """GPUs of the options that ask for some, as ``4``, ``a100:4`` or ``gpu:a100:4``."""

    def asked(option: str) -> int:
        last = options.get(option, "0").split(":")[-1]
        return 1 if last == "gpu" else _number(path, option, last)

    if "gpu" in options.get("gres", ""):
        return asked("gres")
    tasks = _number(path, "ntasks-per-node", options.get("ntasks-per-node", "1"))
    return asked("gpus-per-node") or asked("gpus-per-task") * tasks or asked("gpus") // nodes


def _findings(
    path: Path, options: dict[str, str], lines: list[str], group: NodeGroup
) -> Iterator[str]:
    if "requeue" not in options:
        yield (
            "#SBATCH --requeue is missing: a lost node or a preemption ends the run, which would "
            "resume; add it"
        )
    signal = re.fullmatch(r"B:\w+@(\d+)", options.get("signal", ""))
    notice = int(signal[1]) if signal else 0
    if notice < LEAST_NOTICE_SECONDS:
        yield (
            f"#SBATCH --signal={options.get('signal') or '(missing)'}: the script has {notice} s "
            "to save a checkpoint before the time limit, and what came after the last one is "
            "trained again; give B:USR1@180"
        )
    try:
        limit = seconds_of(options["time"]) if "time" in options else None
    except ValueError:
        raise UserError(
            f"{path}: #SBATCH --time={options['time']} is no time; write it as 24:00:00"
        ) from None
    if limit is not None and limit <= 2 * notice:
        yield (
            f"#SBATCH --time is {limit:,} s and the notice before its end {notice:,} s: little is "
            "trained between start and end; ask for more time"
        )
    if group.environment.get("RAY_AUTH_MODE") != "token":
        yield (
            f"RAY_AUTH_MODE is {group.environment.get('RAY_AUTH_MODE', 'missing')}: every user of "
            "the Slurm cluster can run code as you through Ray's ports; export RAY_AUTH_MODE=token"
        )
    for line in lines:
        if "ray start" in line and "--dashboard-host=0.0.0.0" in line:
            yield (
                "ray start: the dashboard, which runs any job, listens on every address; give "
                "--dashboard-host=127.0.0.1"
            )
