"""A RayJob of KubeRay, alone or behind a queue of Kueue.

Fields: the KubeRay 1.7 API reference and Kubernetes' PodSpec; only those that a check needs are
read here. ``tests/fixtures`` has the schemas.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from glray.errors import UserError
from glray.manifest.nodes import Manifest, NodeGroup, command_in, words_of
from glray.spec.loading import describe

GRACE_SECONDS = 30
"""How long Kubernetes waits between SIGTERM and SIGKILL unless a pod says otherwise."""
DRAIN_SECONDS = 30.0
"""How long Ray drains a node after SIGTERM unless DRAIN says otherwise (Ray 2.60,
``ray/_private/ray_constants.py``)."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
STORE_SHARE = 0.3
"""The share of a node's memory that Ray's object store takes unless it is told another size."""
QUEUE = "kueue.x-k8s.io/queue-name"
SHARED_MEMORY = "/dev/shm"


def quantity(text: object) -> float:
    """A quantity as Kubernetes writes it: ``500m`` CPUs, ``24Gi`` bytes. Raises ValueError."""
    units = {"m": 1e-3, "": 1.0, "k": 1e3} | {u: 1e3**n for n, u in enumerate("MGTPE", start=2)}
    units |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)}
    matched = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([A-Za-z]*)", str(text).strip())
    if matched is None or matched[2] not in units:
        raise ValueError(f"{text!r} is no quantity; write it as 500m, 4 or 24Gi")
    return float(matched[1]) * units[matched[2]]


Quantity = Annotated[float, BeforeValidator(quantity)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class _Variable(_Part):
    name: str
    value: str | None = None


class _Mount(_Part):
    name: str
    mount_path: str


class _Resources(_Part):
    limits: dict[str, Quantity] = {}
    requests: dict[str, Quantity] = {}

    def amount(self, name: str) -> float | None:
        """What the container may use of a resource, None if it has no limit."""
        return self.limits.get(name, self.requests.get(name))


class _EmptyFolder(_Part):
    size_limit: Quantity | None = None


class _Volume(_Part):
    name: str
    empty_dir: _EmptyFolder | None = None
    persistent_volume_claim: dict[str, Any] | None = None
    nfs: dict[str, Any] | None = None
    csi: dict[str, Any] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether all nodes may see its files."""
        return any((self.persistent_volume_claim, self.nfs, self.csi))


class _Container(_Part):
    image: str | None = None
    env: tuple[_Variable, ...] = ()
    env_from: tuple[dict[str, Any], ...] = ()
    resources: _Resources = _Resources()
    volume_mounts: tuple[_Mount, ...] = ()

    @property
    def environment(self) -> dict[str, str | None]:
        return {variable.name: variable.value for variable in self.env}

    @property
    def drain_seconds(self) -> float:
        """How long Ray drains its node after SIGTERM."""
        with suppress(ValueError):
            return float(self.environment.get(DRAIN) or DRAIN_SECONDS)
        return DRAIN_SECONDS


class _Pod(_Part):
    containers: tuple[_Container, ...] = Field(min_length=1)
    restart_policy: str = "Always"
    service_account_name: str | None = None
    termination_grace_period_seconds: int = GRACE_SECONDS
    volumes: tuple[_Volume, ...] = ()

    @property
    def ray(self) -> _Container:
        """The container that Ray runs in: the first, to KubeRay."""
        return self.containers[0]


class _Template(_Part):
    spec: _Pod


class _StartParameters(BaseModel):
    """Options of ``ray start``, which KubeRay wants as strings."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=lambda name: name.replace("_", "-")
    )

    num_cpus: float | None = None
    num_gpus: int | None = None
    object_store_memory: float | None = None


class _Group(_Part):
    template: _Template
    ray_start_params: _StartParameters = _StartParameters()

    def nodes(self, place: str, fewest: int, most: int, is_head: bool = False) -> NodeGroup:
        pod = self.template.spec
        resources, given = pod.ray.resources, self.ray_start_params
        gpus = resources.amount("nvidia.com/gpu") if given.num_gpus is None else given.num_gpus
        shared = {volume.name for volume in pod.volumes if volume.is_shared}
        return NodeGroup(
            place=place,
            fewest=fewest,
            most=most,
            # KubeRay rounds a fraction up for Ray.
            cpus=math.ceil(resources.amount("cpu") or 0)
            if given.num_cpus is None
            else given.num_cpus,
            gpus=int(gpus or 0),
            is_head=is_head,
            image=pod.ray.image,
            environment=pod.ray.environment,
            has_credentials=bool(pod.ray.env_from or pod.service_account_name),
            shared_folders=tuple(
                mount.mount_path for mount in pod.ray.volume_mounts if mount.name in shared
            ),
        )

    def findings(self, place: str) -> Iterator[str]:
        """What is wrong with the pods."""
        pod = self.template.spec
        grace = pod.termination_grace_period_seconds
        drain = pod.ray.drain_seconds
        if drain >= grace:
            yield (
                f"{place}: a preempted pod has {grace} s (terminationGracePeriodSeconds) and Ray "
                f"drains its node for {drain:g} s ({DRAIN}): it is killed before the end, and what "
                f"came after the last checkpoint is lost; give the pod {drain + 30:g} s or Ray less"
            )
        memory, room = pod.ray.resources.amount("memory"), _shared_memory(pod)
        given = self.ray_start_params.object_store_memory
        store = STORE_SHARE * (memory or 0) if given is None else given
        if room is not None and room < store:
            yield (
                f"{place}: {SHARED_MEMORY} has {_gib(room)}, Ray's object store takes "
                f"{_gib(store)}: Ray keeps its objects on a disk instead, which is slow; set the "
                f"volume's sizeLimit to {_gib(store)} or more, or object-store-memory lower"
            )


class _Workers(_Group):
    group_name: str
    replicas: int = 0
    min_replicas: int = 0
    max_replicas: int | None = None
    num_of_hosts: int = 1


class _Head(_Group):
    service_type: str | None = None
    enable_ingress: bool = False


class _Authentication(_Part):
    mode: str = "token"


class _Cluster(_Part):
    ray_version: str | None = None
    auth_options: _Authentication | None = None
    enable_in_tree_autoscaling: bool = False
    head_group_spec: _Head
    worker_group_specs: tuple[_Workers, ...] = ()


class _Job(_Part):
    entrypoint: str
    submission_mode: str = "K8sJobMode"
    backoff_limit: int = 0
    active_deadline_seconds: int | None = None
    shutdown_after_job_finishes: bool = False
    cluster_selector: dict[str, str] | None = None
    submitter_pod_template: dict[str, Any] | None = None
    ray_cluster_spec: _Cluster


class _Quota(_Part):
    name: str
    nominal_quota: Quantity


class _Flavor(_Part):
    resources: tuple[_Quota, ...] = ()


class _ResourceGroup(_Part):
    flavors: tuple[_Flavor, ...] = ()


class _QueueSpec(_Part):
    resource_groups: tuple[_ResourceGroup, ...] = ()


class _Queue(_Part):
    """A ClusterQueue of Kueue."""

    spec: _QueueSpec

    @property
    def quotas(self) -> dict[str, float]:
        """The largest quota of each resource in any flavor."""
        found: dict[str, float] = {}
        for group in self.spec.resource_groups:
            for flavor in group.flavors:
                for quota in flavor.resources:
                    found[quota.name] = max(quota.nominal_quota, found.get(quota.name, 0.0))
        return found


class _Metadata(_Part):
    name: str = ""
    labels: dict[str, str] = {}


class _RayJob(_Part):
    metadata: _Metadata
    spec: _Job


def read_rayjob(path: Path, documents: list[dict[str, Any]]) -> Manifest:
    """The manifest of a file whose ``documents`` have one RayJob. Raises UserError."""
    found = [document for document in documents if document.get("kind") == "RayJob"]
    if len(found) != 1:
        raise UserError(
            f"{path}: has {len(found)} documents of kind RayJob, one can be compared with a "
            "pipeline; give a file with one"
        )
    queues = [document for document in documents if document.get("kind") == "ClusterQueue"]
    try:
        job = _RayJob.model_validate(found[0])
        queue = _Queue.model_validate(queues[0]) if len(queues) == 1 else None
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None
    cluster = job.spec.ray_cluster_spec
    head = cluster.head_group_spec.nodes("headGroupSpec", 1, 1, is_head=True)
    workers = tuple(_worker_nodes(group, cluster) for group in cluster.worker_group_specs)
    return Manifest(
        path=path,
        groups=(head, *workers),
        command=command_in(words_of(job.spec.entrypoint)),
        deadline_seconds=job.spec.active_deadline_seconds,
        ray_version=cluster.ray_version,
        own_findings=(*_findings(job), *_quota_findings(job, queue)),
    )


def _worker_nodes(group: _Workers, cluster: _Cluster) -> NodeGroup:
    place = f"workerGroupSpecs.{group.group_name}"
    fewest = group.min_replicas if cluster.enable_in_tree_autoscaling else group.replicas
    most = group.replicas
    if cluster.enable_in_tree_autoscaling:
        most = group.replicas if group.max_replicas is None else group.max_replicas
    return group.nodes(place, fewest * group.num_of_hosts, most * group.num_of_hosts)


def _findings(job: _RayJob) -> Iterator[str]:
    spec, cluster = job.spec, job.spec.ray_cluster_spec
    head = cluster.head_group_spec
    if spec.backoff_limit < 1:
        yield (
            f"spec.backoffLimit is {spec.backoff_limit}: a lost head ends the run, which would "
            "resume on a new cluster; set it to 3 or more"
        )
    if not spec.shutdown_after_job_finishes:
        yield (
            "spec.shutdownAfterJobFinishes is false: the nodes stay and cost when the job has "
            "ended, and Kueue does not admit it; set it to true"
        )
    if spec.submission_mode == "SidecarMode":
        policy = head.template.spec.restart_policy
        if policy != "Never":
            yield (
                f"headGroupSpec: restartPolicy is {policy}: KubeRay refuses SidecarMode unless the "
                "head's is Never; set it"
            )
        if spec.cluster_selector is not None or spec.submitter_pod_template is not None:
            yield (
                "spec.submissionMode is SidecarMode: KubeRay then refuses clusterSelector and "
                "submitterPodTemplate; remove them, or use K8sJobMode"
            )
    mode = cluster.auth_options.mode if cluster.auth_options else "missing"
    if "token" not in (mode, head.template.spec.ray.environment.get("RAY_AUTH_MODE")):
        yield (
            f"rayClusterSpec.authOptions.mode is {mode}: who reaches the head's ports runs "
            "code there; set it to token"
        )
    if head.service_type in ("LoadBalancer", "NodePort") or head.enable_ingress:
        how = "enableIngress" if head.enable_ingress else f"serviceType {head.service_type}"
        yield (
            f"headGroupSpec: {how} opens the dashboard, which runs any job, beyond the cluster; "
            "remove it and use kubectl port-forward"
        )
    yield from head.findings("headGroupSpec")
    for group in cluster.worker_group_specs:
        yield from group.findings(f"workerGroupSpecs.{group.group_name}")


def _quota_findings(job: _RayJob, queue: _Queue | None) -> Iterator[str]:
    """What of the job exceeds the file's ClusterQueue, if it has one."""
    if queue is None:
        return
    if QUEUE not in job.metadata.labels:
        yield (
            f"metadata.labels has no {QUEUE}: the file has a queue, but the job does not wait in "
            "it; add the label"
        )
        return
    cluster = job.spec.ray_cluster_spec
    pods = [(1, cluster.head_group_spec.template.spec)]
    pods += [(g.replicas * g.num_of_hosts, g.template.spec) for g in cluster.worker_group_specs]
    for name, quota in queue.quotas.items():
        asked = sum(
            count * (container.resources.amount(name) or 0)
            for count, pod in pods
            for container in pod.containers
        )
        shown = _gib if name == "memory" else "{:g}".format
        if asked > quota:
            yield (
                f"ClusterQueue: nominalQuota of {name} is {shown(quota)}, the job asks for "
                f"{shown(asked)}: "
                "Kueue never admits it; raise the quota or ask for less"
            )


def _shared_memory(pod: _Pod) -> float | None:
    """Bytes of /dev/shm where the pod declares a limit; without, KubeRay mounts all of its
    memory."""
    mounted = {mount.name for mount in pod.ray.volume_mounts if mount.mount_path == SHARED_MEMORY}
    for volume in pod.volumes:
        if volume.name in mounted and volume.empty_dir is not None:
            return volume.empty_dir.size_limit
    return None


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
