"""Whether a pipeline fits what a manifest starts. Nothing outside of this process is asked."""

import math
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import yaml

from glray import __version__
from glray.errors import UserError
from glray.manifest.launcher import read_launcher
from glray.manifest.nodes import PLACEHOLDER, Manifest, NodeGroup
from glray.manifest.rayjob import read_rayjob
from glray.manifest.slurm import read_slurm
from glray.spec.base import named_files
from glray.spec.compute import ComputeSpec
from glray.spec.pipeline import PipelineSpec

CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_CLIENT_ID"),
}
"""Schemes of a storage, and variables of which one has its credentials."""

OWN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders of which every machine has its own."""


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file of any kind: a RayJob, a cluster launcher's, a Slurm script.

    Raises UserError.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such manifest; give a RayJob, a cluster.yaml or an sbatch file"
        )
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}); give a manifest") from None
    if re.search(r"^#SBATCH\b", text, flags=re.MULTILINE):
        return read_slurm(path, text)
    try:
        documents = [document for document in yaml.safe_load_all(text) if document]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if all(isinstance(document, dict) for document in documents):
        if any(document.get("kind") == "RayJob" for document in documents):
            return read_rayjob(path, documents)
        if len(documents) == 1 and "available_node_types" in documents[0]:
            return read_launcher(path, documents[0])
    raise UserError(
        f"{path}: neither a RayJob (kind: RayJob), nor a file of Ray's cluster launcher "
        "(available_node_types), nor a Slurm script (#SBATCH); give one of them"
    )


def findings(manifest: Manifest, spec: PipelineSpec, pipeline: str) -> list[str]:
    """What is wrong, a line each: where, both numbers, the consequence and the remedy; empty if the
    pipeline, which is read from ``pipeline``, fits."""
    return [
        *_placeholders(manifest.path),
        *manifest.own_findings,
        *_other_pipeline(manifest, pipeline),
        *_room(manifest, spec),
        *_cpus(manifest, spec),
        *_head(manifest),
        *_idle_gpus(manifest, spec),
        *_deadline(manifest, spec),
        *_storage(manifest, spec),
        *_local_files(manifest, spec),
        *_versions(manifest),
        *_plain_secrets(manifest),
    ]


def most_workers(manifest: Manifest, compute: ComputeSpec) -> int:
    """For how many workers there is room once all nodes are there."""
    return sum(group.most * workers_per_node(group, compute) for group in manifest.groups)


def workers_per_node(group: NodeGroup, compute: ComputeSpec) -> int:
    """How many workers fit on a node, each whole."""
    by_cpus = math.floor(group.cpus / compute.cpus_per_worker)
    return min(by_cpus, group.gpus) if compute.use_gpu else by_cpus


def _placeholders(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if PLACEHOLDER in line.partition("# ")[0]:
            yield f"line {number}: still says {PLACEHOLDER}: write your own value there"


def _other_pipeline(manifest: Manifest, pipeline: str) -> Iterator[str]:
    command = manifest.command
    named = None if command is None else command.pipeline
    if named is not None and Path(named).name != Path(pipeline).name:
        yield (
            f"its command runs {named}, compared is {pipeline}: what is said here may not hold for "
            "its run; give the one that it runs"
        )


def _room(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    compute, room = spec.compute, most_workers(manifest, spec.compute)
    nodes = "; ".join(
        f"{g.place}: {_counted(g.most, 'node')} of {g.cpus:g} CPUs and {g.gpus} GPUs"
        for g in manifest.groups
        if not g.is_head
    )
    asked = f"compute.num_workers {compute.num_workers} of {_each(compute)}"
    if room < compute.least_workers:
        remedy = f"set compute.num_workers={room}" if room else "ask for less per worker"
        yield (
            f"{asked}: room for {room} ({nodes}): the run waits {compute.wait_seconds} s for them "
            f"and ends; add nodes, or {remedy}"
        )
    elif room < compute.most_workers:
        yield (
            f"{asked}: room for {room} at most ({nodes}): it never has more; add nodes, or set "
            f"compute.num_workers=[{compute.least_workers}, {room}]"
        )
    elif compute.groups is not None and room // compute.least_workers < min(
        compute.groups, _num_runs(spec)
    ):
        yield (
            f"compute.groups {compute.groups} of {_counted(compute.least_workers, 'worker')}: room "
            f"for {room // compute.least_workers} ({nodes}): the others wait; add nodes, or set "
            f"compute.groups={room // compute.least_workers}"
        )


def _cpus(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    compute = spec.compute
    for group in manifest.groups:
        on_a_node = min(workers_per_node(group, compute), _most_at_once(spec))
        left = group.cpus - on_a_node * compute.cpus_per_worker
        if on_a_node and left < 1:
            yield (
                f"{group.place}: {_counted(on_a_node, 'worker')} of {compute.cpus_per_worker} CPUs "
                f"leave {left:g} of {group.cpus:g} CPUs for reading tokens and for Ray: training "
                "waits for data; set compute.cpus_per_worker="
                f"{max(1, math.floor((group.cpus - 1) / on_a_node))}"
            )


def _head(manifest: Manifest) -> Iterator[str]:
    for group in manifest.groups:
        if group.is_head and group.cpus > 0:
            yield (
                f"{group.place}: the head offers {group.cpus:g} CPUs: tasks and workers may run "
                "there, and a head out of memory ends everything; give it 0 (num-cpus, resources)"
            )


def _idle_gpus(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    command, compute = manifest.command, spec.compute
    if spec.search is not None or (command is not None and command.verb != "run"):
        return  # how many of its trials or pipelines train at once is not known here
    gpus = sum(group.fewest * group.gpus for group in manifest.groups)
    used = _most_at_once(spec) if compute.use_gpu else 0
    if gpus > used:
        why = "" if compute.use_gpu else " (compute.use_gpu is false)"
        yield (
            f"{gpus} GPUs are there all the time, {_counted(used, 'worker')} at once use {used}"
            f"{why}: {gpus - used} are paid for and idle; take nodes away or ask for more workers"
        )


def _deadline(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    deadline, seconds = manifest.deadline_seconds, spec.budget.seconds
    at_once = max(1, most_workers(manifest, spec.compute) // spec.compute.least_workers)
    at_once = min(at_once, spec.compute.groups or at_once)
    if deadline is None or seconds is None:
        return
    trained = seconds * math.ceil(_num_runs(spec) / at_once)
    if trained >= deadline:
        yield (
            f"the job is ended for good after {deadline:,} s (activeDeadlineSeconds), its "
            f"{_counted(_num_runs(spec), 'run')} of budget.seconds {seconds:,.0f}, {at_once} at "
            f"once, train {trained:,.0f} s: it cannot finish; give {2 * trained:,.0f} s or more"
        )


def _storage(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    storage = spec.compute.storage
    scheme, is_url, _ = storage.partition("://")
    if is_url:
        yield from _url_storage(manifest, storage, scheme)
    elif not storage.startswith("/"):
        if not manifest.sees_local_files:
            yield (
                f"compute.storage {storage!r} is a folder of each node's own: workers on other "
                "nodes find no token blocks, and checkpoints go with the node; give "
                "s3://BUCKET/PREFIX or a folder that every node sees"
            )
    else:
        for group in manifest.groups:
            if not _is_shared(storage, group):
                yield (
                    f"{group.place}: nothing that all nodes see is mounted at compute.storage "
                    f"{storage}: each node would have its own; mount a shared volume there, or "
                    "give s3://BUCKET/PREFIX"
                )


def _url_storage(manifest: Manifest, storage: str, scheme: str) -> Iterator[str]:
    if scheme not in CREDENTIALS:
        yield (
            f"compute.storage {storage!r}: {scheme}:// is none of "
            f"{', '.join(f'{known}://' for known in CREDENTIALS)}: the run ends at once; give one"
        )
        return
    for group in manifest.groups:
        known = any(name in group.environment for name in CREDENTIALS[scheme])
        if not known and not group.has_credentials:
            yield (
                f"{group.place}: no credentials for {storage} ({' or '.join(CREDENTIALS[scheme])}, "
                "a secret, a role): its nodes cannot read or write there; pass them"
            )


def _local_files(manifest: Manifest, spec: PipelineSpec) -> Iterator[str]:
    """Files that the spec names and nodes may not see."""
    for field, path in named_files(spec):
        if "://" in path or (manifest.sees_local_files and not path.startswith(OWN_FOLDERS)):
            continue
        blind = [g.place for g in manifest.groups if not _is_shared(path, g)]
        if blind:
            yield (
                f"{field} {path!r}: {', '.join(blind)} may not see this file: tasks there fail; "
                "give a URL (s3://…) or a path in a folder that every node mounts"
            )


def _versions(manifest: Manifest) -> Iterator[str]:
    if manifest.glray_version not in (None, __version__):
        yield (
            f"it installs glray {manifest.glray_version}, this is {__version__}: the spec may mean "
            f"something else there; install glray=={__version__}"
        )
    images = {group.image: group.place for group in manifest.groups if group.image}
    if len(images) > 1:
        yield (
            f"{_counted(len(images), 'image')} ({', '.join(sorted(images))}): head and workers may "
            "have different versions of glray and Ray; give all the same"
        )
    for image, place in images.items():
        name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
        if name == "glray" and "@" not in image and tag != __version__:
            yield (
                f"{place}: image {image}, this is glray {__version__}: the code may be another "
                f"when the run resumes; tag the image :{__version__} and name that"
            )
    ray = version("ray")
    if manifest.ray_version not in (None, ray):
        yield (
            f"rayVersion is {manifest.ray_version}, glray {__version__} was installed with Ray "
            f"{ray}: KubeRay starts Ray by what the other one can; set rayVersion to {ray}"
        )


def _plain_secrets(manifest: Manifest) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for group in manifest.groups:
        for name, value in group.environment.items():
            if value and re.search(r"SECRET|PASSWORD|_TOKEN$|_KEY$", name):
                places.setdefault(name, []).append(group.place)
    for name, where in places.items():
        yield (
            f"{', '.join(where)}: {name} stands there in plain text: anyone who can read the file "
            "has it; take it from a secret or a role, and rotate the exposed one"
        )


def _is_shared(path: str, group: NodeGroup) -> bool:
    """Whether an absolute path lies in a folder that all nodes see."""
    if not path.startswith("/") or any(Path(path).is_relative_to(own) for own in OWN_FOLDERS):
        return False
    return any(Path(path).is_relative_to(folder) for folder in group.shared_folders)


def _num_runs(spec: PipelineSpec) -> int:
    return len(spec.trained_arms) * len(spec.seeds)


def _most_at_once(spec: PipelineSpec) -> int:
    """Workers that train at once where there is room for all."""
    runs = _num_runs(spec)
    return spec.compute.most_workers * min(runs, spec.compute.groups or runs)


def _each(compute: ComputeSpec) -> str:
    return f"{compute.cpus_per_worker} CPUs{' and 1 GPU' if compute.use_gpu else ''} each"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
