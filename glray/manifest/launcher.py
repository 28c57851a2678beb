"""A file of Ray's cluster launcher (``ray up``) for AWS. Ray itself has its schema,
``ray/autoscaler/ray-schema.json``; only what a check needs is read here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from glray.errors import UserError
from glray.manifest.nodes import Manifest, NodeGroup, assignments, installed_glray
from glray.spec.loading import describe

SSH_PORT = 22


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Instance(_Part):
    """AWS's own names, which boto3 takes."""

    InstanceType: str | None = None
    ImageId: str | None = None
    IamInstanceProfile: dict[str, str] | None = None
    InstanceMarketOptions: dict[str, Any] | None = None

    @property
    def is_spot(self) -> bool:
        return (self.InstanceMarketOptions or {}).get("MarketType") == "spot"


class _NodeType(_Part):
    node_config: _Instance = _Instance()
    resources: dict[str, float] = {}
    min_workers: int = 0
    max_workers: int | None = None


class _Rule(_Part):
    FromPort: int | None = None
    ToPort: int | None = None
    IpRanges: tuple[dict[str, str], ...] = ()
    Ipv6Ranges: tuple[dict[str, str], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether every address may connect."""
        sources = {source for each in self.IpRanges + self.Ipv6Ranges for source in each.values()}
        return bool({"0.0.0.0/0", "::/0"} & sources)


class _SecurityGroup(_Part):
    IpPermissions: tuple[_Rule, ...] = ()


class _Provider(_Part):
    type: str
    security_group: _SecurityGroup = _SecurityGroup()


class _Docker(_Part):
    image: str | None = None


class _Cluster(_Part):
    max_workers: int = 2
    provider: _Provider
    docker: _Docker = _Docker()
    head_node_type: str
    available_node_types: dict[str, _NodeType]
    initialization_commands: tuple[str, ...] = ()
    setup_commands: tuple[str, ...] = ()
    head_start_ray_commands: tuple[str, ...] = ()
    worker_start_ray_commands: tuple[str, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        return self.initialization_commands + self.setup_commands


def read_launcher(path: Path, document: dict[str, Any]) -> Manifest:
    """The manifest of a cluster launcher's file. Raises UserError."""
    try:
        cluster = _Cluster.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None
    if cluster.head_node_type not in cluster.available_node_types:
        raise UserError(
            f"{path}: head_node_type {cluster.head_node_type!r} is none of available_node_types "
            f"({', '.join(cluster.available_node_types)}); name one of them"
        )
    return Manifest(
        path=path,
        groups=tuple(_nodes(cluster, name) for name in cluster.available_node_types),
        command=None,
        glray_version=installed_glray("\n".join(cluster.commands)),
        own_findings=tuple(_findings(cluster)),
    )


def _nodes(cluster: _Cluster, name: str) -> NodeGroup:
    kind, is_head = cluster.available_node_types[name], name == cluster.head_node_type
    most = cluster.max_workers if kind.max_workers is None else kind.max_workers
    starts = cluster.head_start_ray_commands if is_head else cluster.worker_start_ray_commands
    return NodeGroup(
        place=_place(name),
        fewest=1 if is_head else kind.min_workers,
        most=1 if is_head else min(most, cluster.max_workers),
        cpus=kind.resources.get("CPU", 0),
        gpus=int(kind.resources.get("GPU", 0)),
        is_head=is_head,
        image=cluster.docker.image,
        environment=assignments(starts),
        # What other clouds give their nodes is not read here.
        has_credentials=cluster.provider.type != "aws"
        or kind.node_config.IamInstanceProfile is not None,
        shared_folders=tuple(
            word
            for command in cluster.commands
            if re.search(r"\bmount\b", command)
            for word in re.findall(r"(?<!\S)/\S+", command)
        ),
    )


def _place(name: str) -> str:
    return f"available_node_types.{name}"


def _findings(cluster: _Cluster) -> Iterator[str]:
    for name, kind in cluster.available_node_types.items():
        place, instance = _place(name), kind.node_config
        if name == cluster.head_node_type and instance.is_spot:
            yield (
                f"{place}: the head is a spot instance: with it go the driver and the cluster, and "
                "nobody starts them again; remove InstanceMarketOptions"
            )
        if "CPU" not in kind.resources:
            yield (
                f"{place}: resources has no CPU: how many workers fit on a "
                f"{instance.InstanceType} only the cloud knows; write CPU and GPU there"
            )
        if cluster.provider.type == "aws" and not instance.ImageId and not cluster.docker.image:
            yield (
                f"{place}: node_config has no ImageId: Ray's default is an Ubuntu 18.04, whose "
                "Python is older than glray's 3.11; name an image of Ubuntu 24.04"
            )
    for rule in cluster.provider.security_group.IpPermissions:
        if rule.is_open and (rule.FromPort, rule.ToPort) != (SSH_PORT, SSH_PORT):
            yield (
                f"provider.security_group: ports {rule.FromPort} to {rule.ToPort} are open to "
                "everybody: who "
                "reaches Ray's runs code there; remove the rule and use ray dashboard"
            )
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in getattr(cluster, field) if "ray start" in command]
        given = assignments(starts)
        if given.get("RAY_AUTH_MODE") != "token":
            yield (
                f"{field}: RAY_AUTH_MODE is {given.get('RAY_AUTH_MODE', 'missing')}: who reaches "
                "a node's ports runs code there; start Ray with RAY_AUTH_MODE=token"
            )
        if any("--dashboard-host=0.0.0.0" in command for command in starts):
            yield (
                f"{field}: the dashboard, which runs any job, listens on every address; give "
                "--dashboard-host=127.0.0.1 and use ray dashboard"
            )
