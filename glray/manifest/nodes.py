"""What a manifest says, whatever kind it is of: groups of equal nodes and the command."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLACEHOLDER = "CHANGE-ME"
"""What the manifests of this repository say where a person has to write something."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one shape."""

    place: str
    """Where the manifest declares them."""
    fewest: int
    """Nodes that are there all the time."""
    most: int
    """Nodes that there can be."""
    cpus: float
    """CPUs that Ray gives to workers and tasks, per node."""
    gpus: int
    """GPUs per node."""
    is_head: bool = False
    """Whether this is the head alone: no worker is meant to train there."""
    image: str | None = None
    """The container image, None without one."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables by name; the value is None if it comes from elsewhere, such as a secret."""
    has_credentials: bool = False
    """Whether a secret or a role of the cloud, whose content is not seen here, may hold the
    storage's credentials."""
    shared_folders: tuple[str, ...] = ()
    """Absolute paths at which all nodes see the same files."""


@dataclass(frozen=True)
class Command:
    """The ``glray`` command that a manifest runs."""

    verb: str
    """``run``, ``compare``, ``tune``, …"""
    pipeline: str | None
    """Its PIPELINE; None if it names none or several."""
    overrides: tuple[str, ...]
    """The values of ``--set``."""


@dataclass(frozen=True)
class Manifest:
    """A manifest of any kind."""

    path: Path
    groups: tuple[NodeGroup, ...]
    command: Command | None
    """None if the manifest starts the nodes alone."""
    sees_local_files: bool = False
    """Whether all nodes are expected to see the folder that it is submitted from."""
    deadline_seconds: int | None = None
    """Seconds after which the job is ended for good, None if it may be resumed or has no end."""
    glray_version: str | None = None
    """The version that its commands install, None if they name none."""
    ray_version: str | None = None
    """The version of Ray that it names."""
    own_findings: tuple[str, ...] = ()
    """What is wrong with it whatever the pipeline is."""


def command_in(words: list[str]) -> Command | None:
    """The ``glray`` command among the words of a shell command, None if there is none."""
    for index, word in enumerate(words[:-1]):
        if Path(word).name == "glray" and not words[index + 1].startswith("-"):
            return _command(words[index + 1], words[index + 2 :])
    return None


def words_of(text: str) -> list[str]:
    """A shell command's words; a text with an unclosed quote is cut at blanks."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def assignments(commands: Iterable[str]) -> dict[str, str | None]:
    """What shell commands set by ``NAME=value``; the value is None if the shell expands it."""
    found: dict[str, str | None] = {}
    for command in commands:
        for name, value in re.findall(r"(?<![\w-])([A-Za-z_]\w*)=(\"[^\"]*\"|\S+)", command):
            plain = value.strip("\"';")
            found[name] = None if "$" in plain else plain
    return found


def installed_glray(commands: str) -> str | None:
    """The version of glray that shell commands install by ``pip install glray==…``."""
    installed = re.search(r"\bglray(?:\[[^\]]*\])?==([\w.]+)", commands)
    return installed[1] if installed else None


def _command(verb: str, rest: list[str]) -> Command:
    positional: list[str] = []
    overrides: list[str] = []
    words = iter(rest)
    for word in words:
        if word in ("&", "&&", "||", "|", ";") or word[:1] in (">", "<"):
            break
        if word == "--set":
            overrides.append(next(words, ""))
        elif word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        elif word.startswith("-"):
            continue
        else:
            positional.append(word)
    return Command(verb, positional[0] if len(positional) == 1 else None, tuple(overrides))
