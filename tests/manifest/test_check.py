"""What `glray cluster check` finds: each mistake alone, in manifests that are right otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from glray import __version__
from glray.cli import app
from glray.errors import UserError
from glray.manifest.check import findings, read_manifest
from glray.manifest.nodes import PLACEHOLDER, assignments, command_in
from glray.manifest.rayjob import quantity
from glray.manifest.slurm import seconds_of
from glray.spec import load_pipeline

REPOSITORY = Path(__file__).parents[2]
PIPELINE = REPOSITORY / "pipelines" / "cluster.py"
STORAGE = ["compute.storage=s3://bucket/glray", 'corpus.paths=["s3://bucket/corpus"]']

RAYJOB = REPOSITORY / "kuberay" / "rayjob.yaml"
KUEUE = REPOSITORY / "kuberay" / "kueue.yaml"
LAUNCHER = REPOSITORY / "cluster.yaml"
SLURM = REPOSITORY / "slurm" / "glray.sbatch"
SHIPPED = (RAYJOB, KUEUE, LAUNCHER, SLURM)

Change = Callable[[dict[str, Any]], object]
CLUSTER = "rayClusterSpec"


def found(path: Path, *overrides: str) -> list[str]:
    manifest = read_manifest(path)
    own = manifest.command.overrides if manifest.command else STORAGE
    spec = load_pipeline(PIPELINE, [*own, *overrides]).resolved()
    return findings(manifest, spec, str(PIPELINE))


def filled_in(source: Path, folder: Path) -> Path:
    """A shipped manifest as a person completes it."""
    path = folder / source.name
    path.write_text(source.read_text().replace(PLACEHOLDER, "bucket"))
    return path


def changed(source: Path, folder: Path, change: Change) -> Path:
    """A completed manifest of YAML with a change to the document that is a RayJob or the only."""
    path = filled_in(source, folder)
    documents = list(yaml.safe_load_all(path.read_text()))
    change(documents[-1])
    path.write_text(yaml.safe_dump_all(documents))
    return path


def replaced(source: Path, folder: Path, old: str, new: str) -> Path:
    """A completed manifest with another text somewhere."""
    path = filled_in(source, folder)
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    return path


def head(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"][CLUSTER]["headGroupSpec"]


def workers(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"][CLUSTER]["workerGroupSpecs"][0]


def worker_pod(job: dict[str, Any]) -> dict[str, Any]:
    return workers(job)["template"]["spec"]


def set_limits(job: dict[str, Any], **limits: str) -> None:
    worker_pod(job)["containers"][0]["resources"]["limits"].update(limits)


@pytest.mark.parametrize("source", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_manifest_fits_its_pipeline_once_completed(source: Path, tmp_path: Path) -> None:
    assert found(filled_in(source, tmp_path)) == []


@pytest.mark.parametrize("source", [RAYJOB, KUEUE, LAUNCHER], ids=lambda path: path.name)
def test_what_is_to_be_filled_in_is_found(source: Path) -> None:
    lines = [n for n, line in enumerate(source.read_text().splitlines(), 1) if PLACEHOLDER in line]
    said = [finding for finding in found(source) if PLACEHOLDER in finding]
    assert said
    assert {int(finding.split(":")[0].removeprefix("line ")) for finding in said} <= set(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda j: workers(j).update(replicas=1), ("num_workers 8", "room for 4", "3600 s")),
        (lambda j: set_limits(j, cpu="40"), ("leave 0 of 40 CPUs", "cpus_per_worker=9")),
        (lambda j: set_limits(j, **{"nvidia.com/gpu": "3"}), ("num_workers 8", "room for 6")),
        (lambda j: workers(j).update(replicas=3), ("12 GPUs", "8 workers", "4 cost")),
        (lambda j: head(j).update(rayStartParams={}), ("headGroupSpec", "offers 4 CPUs")),
        (lambda j: j["spec"].pop("backoffLimit"), ("backoffLimit is 0", "3 or more")),
        (lambda j: j["spec"].pop("shutdownAfterJobFinishes"), ("shutdownAfterJobFinishes",)),
        (
            lambda j: head(j)["template"]["spec"].pop("restartPolicy"),
            ("restartPolicy is Always", "SidecarMode"),
        ),
        (
            lambda j: j["spec"].update(clusterSelector={"ray.io/cluster": "c"}),
            ("SidecarMode", "clusterSelector"),
        ),
        (
            lambda j: j["spec"][CLUSTER].update(authOptions={"mode": "disabled"}),
            ("authOptions.mode is disabled", "token"),
        ),
        (lambda j: j["spec"][CLUSTER].pop("authOptions"), ("authOptions.mode is missing",)),
        (lambda j: head(j).update(serviceType="NodePort"), ("serviceType NodePort", "dashboard")),
        (
            lambda j: worker_pod(j).pop("terminationGracePeriodSeconds"),
            ("workerGroupSpecs.gpu", "has 30 s", "for 90 s", "120 s"),
        ),
        (
            lambda j: worker_pod(j)["volumes"][0]["emptyDir"].update(sizeLimit="2Gi"),
            ("/dev/shm has 2.0 GiB", "96.0 GiB"),
        ),
        (
            lambda j: worker_pod(j)["containers"][0].pop("envFrom"),
            ("workerGroupSpecs.gpu: no credentials", "AWS_ACCESS_KEY_ID"),
        ),
        (
            lambda j: worker_pod(j)["containers"][0]["env"].append(
                {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}
            ),
            ("workerGroupSpecs.gpu: AWS_SECRET_ACCESS_KEY", "plain text"),
        ),
        (
            lambda j: j["spec"][CLUSTER].update(rayVersion="2.9.0"),
            ("rayVersion is 2.9.0", "2.60.0"),
        ),
        (
            lambda j: j["spec"].update(
                entrypoint=j["spec"]["entrypoint"].replace("pipelines/cluster", "pipelines/paper")
            ),
            ("/opt/glray/pipelines/paper.py", "pipelines/cluster.py"),
        ),
    ],
)
def test_a_mistake_in_a_rayjob_is_one_line(
    change: Change, words: tuple[str, ...], tmp_path: Path
) -> None:
    (finding,) = found(changed(RAYJOB, tmp_path, change))
    assert "\n" not in finding
    for word in words:
        assert word in finding


def test_a_token_given_by_hand_is_one(tmp_path: Path) -> None:
    def by_hand(job: dict[str, Any]) -> None:
        del job["spec"][CLUSTER]["authOptions"]
        variable = {"name": "RAY_AUTH_MODE", "value": "token"}
        head(job)["template"]["spec"]["containers"][0]["env"].append(variable)

    assert found(changed(RAYJOB, tmp_path, by_hand)) == []


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("glray:latest", f"this is glray {__version__}"),
        ("registry:5000/team/glray:0.1.0", "image registry:5000/team/glray:0.1.0"),
    ],
)
def test_an_image_of_another_version_is_found(tag: str, words: str, tmp_path: Path) -> None:
    path = filled_in(RAYJOB, tmp_path)
    path.write_text(path.read_text().replace(f"glray:{__version__}", tag))
    (finding,) = found(path)
    assert words in finding


@pytest.mark.parametrize(
    "image", [f"registry:5000/glray:{__version__}", "team:7", "glray@sha256:0"]
)
def test_an_image_whose_version_fits_or_is_unknown_is_none(image: str, tmp_path: Path) -> None:
    path = filled_in(RAYJOB, tmp_path)
    path.write_text(path.read_text().replace(f"glray:{__version__}", image))
    assert found(path) == []


def test_images_that_differ_are_found(tmp_path: Path) -> None:
    path = changed(
        RAYJOB, tmp_path, lambda j: worker_pod(j)["containers"][0].update(image="team:7")
    )
    (finding,) = found(path)
    assert "2 images" in finding


def test_more_than_the_queues_quota_is_found(tmp_path: Path) -> None:
    path = changed(KUEUE, tmp_path, lambda j: workers(j).update(replicas=3))
    quota = [finding for finding in found(path) if finding.startswith("ClusterQueue")]
    assert [finding.split(": Kueue")[0] for finding in quota] == [
        "ClusterQueue: nominalQuota of cpu is 100, the job asks for 136",
        "ClusterQueue: nominalQuota of memory is 700.0 GiB, the job asks for 976.0 GiB",
        "ClusterQueue: nominalQuota of nvidia.com/gpu is 8, the job asks for 12",
    ]


def test_a_job_outside_of_the_files_queue_is_found(tmp_path: Path) -> None:
    (finding,) = found(changed(KUEUE, tmp_path, lambda j: j["metadata"].pop("labels")))
    assert "kueue.x-k8s.io/queue-name" in finding


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["available_node_types"]["head"]["node_config"].update(
                InstanceMarketOptions={"MarketType": "spot"}
            ),
            ("available_node_types.head", "spot instance"),
        ),
        (
            lambda c: c["available_node_types"]["gpu"]["node_config"].pop("ImageId"),
            ("available_node_types.gpu", "Ubuntu 18.04"),
        ),
        (
            lambda c: c["available_node_types"]["gpu"]["node_config"].pop("IamInstanceProfile"),
            ("available_node_types.gpu: no credentials",),
        ),
        (lambda c: c.update(max_workers=1), ("num_workers 8", "room for 4")),
        (
            lambda c: (
                c["available_node_types"]["gpu"].update(min_workers=2)
                or c["available_node_types"]["gpu"]["resources"].update(GPU=8)
            ),
            ("16 GPUs", "8 cost"),
        ),
        (
            lambda c: c["provider"].update(
                security_group={
                    "IpPermissions": [
                        {"FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
                    ]
                }
            ),
            ("ports 8265 to 8265", "everybody"),
        ),
        (
            lambda c: c.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
            ("worker_start_ray_commands: RAY_AUTH_MODE is missing",),
        ),
        (
            lambda c: c["setup_commands"].append("pip install 'glray[cluster]==0.1.0'"),
            ("installs glray 0.1.0", __version__),
        ),
    ],
)
def test_a_mistake_in_a_launchers_file_is_one_line(
    change: Change, words: tuple[str, ...], tmp_path: Path
) -> None:
    (finding,) = found(changed(LAUNCHER, tmp_path, change))
    for word in words:
        assert word in finding


def test_a_dashboard_on_every_address_is_found(tmp_path: Path) -> None:
    path = replaced(LAUNCHER, tmp_path, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")
    (finding,) = found(path)
    assert "head_start_ray_commands: the dashboard" in finding


def test_resources_that_only_aws_knows_are_found(tmp_path: Path) -> None:
    path = changed(LAUNCHER, tmp_path, lambda c: c["available_node_types"]["gpu"].pop("resources"))
    assert any("resources has no CPU" in finding for finding in found(path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("--nodes=2", "--nodes=1", ("num_workers 8", "room for 4")),
        ("--cpus-per-task=48", "--cpus-per-task=40", ("#SBATCH", "leave 0 of 40 CPUs")),
        ("#SBATCH --requeue\n", "", ("--requeue is missing",)),
        ("B:USR1@180", "USR1@180", ("--signal=USR1@180", "0 s")),
        ("B:USR1@180", "B:USR1@20", ("--signal=B:USR1@20", "20 s")),
        ("--time=24:00:00", "--time=5", ("--time is 300 s", "180 s")),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", ("RAY_AUTH_MODE is disabled",)),
        ('"$PWD/runs"', "/tmp/runs", ("/tmp/runs", "#SBATCH")),
        (
            "RAY_AUTH_TOKEN=$(\"$python\" -c 'import secrets; print(secrets.token_hex(32))')\n"
            "export RAY_AUTH_TOKEN",
            "export RAY_AUTH_TOKEN=abc",
            ("RAY_AUTH_TOKEN", "plain text"),
        ),
    ],
)
def test_a_mistake_in_a_slurm_script_is_one_line(
    old: str, new: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (finding,) = found(replaced(SLURM, tmp_path, old, new))
    for word in words:
        assert word in finding


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("compute.storage=runs",), ("'runs' is a folder of each node's own",)),
        (("compute.storage=hdfs://h/x",), ("hdfs:// is none of s3://, gs://, az://",)),
        (("corpus.paths=[corpus.parquet]",), ("corpus.paths 'corpus.parquet'", "may not see")),
        (("compute.use_gpu=false", "compute.cpus_per_worker=9"), ("8 GPUs", "use_gpu is false")),
        (("compute.num_workers=[4, 16]",), ("room for 8 at most", "[4, 8]")),
        (("compute.groups=2", "seeds=[0, 1]"), ("compute.groups 2", "room for 1")),
        (
            ("budget={seconds: 500_000}", "seeds=[0, 1]"),
            ("604,800 s", "2 runs of budget.seconds 500,000", "1,000,000 s"),
        ),
    ],
)
def test_what_of_the_pipeline_does_not_fit_is_one_line(
    overrides: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    (finding,) = found(filled_in(RAYJOB, tmp_path), *overrides)
    for word in words:
        assert word in finding


def test_a_shared_folder_serves_as_storage(tmp_path: Path) -> None:
    folder = ("compute.storage=/mnt/glray/runs", "corpus.paths=[/mnt/glray/corpus]")

    def mount(job: dict[str, Any], volume: dict[str, Any]) -> None:
        for pod in (head(job)["template"]["spec"], worker_pod(job)):
            mounts = pod["containers"][0].setdefault("volumeMounts", [])
            mounts.append({"name": "storage", "mountPath": "/mnt/glray"})
            pod.setdefault("volumes", []).append({"name": "storage", **volume})

    claim = {"persistentVolumeClaim": {"claimName": "glray"}}
    assert found(changed(RAYJOB, tmp_path, lambda job: mount(job, claim)), *folder) == []
    own = found(changed(RAYJOB, tmp_path, lambda job: mount(job, {"emptyDir": {}})), *folder)
    assert len(own) == 3  # the storage on both kinds of nodes, and the corpus
    mounted = "sudo mount -t nfs4 server:/ /mnt/glray"
    path = changed(LAUNCHER, tmp_path, lambda c: c.update(initialization_commands=[mounted]))
    assert found(path, *folder) == []


def test_the_command_says_what_fits_and_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled_in(RAYJOB, tmp_path)
    check = ["cluster", "check", "rayjob.yaml", str(PIPELINE)]
    fits = CliRunner().invoke(app, check)
    assert fits.exit_code == 0
    assert "room for 8 workers, 8 asked for; storage s3://bucket/glray" in fits.output
    wrong = CliRunner().invoke(app, [*check, "--set", "compute.num_workers=16"])
    assert wrong.exit_code == 2
    (line,) = wrong.output.splitlines()
    assert line.startswith("rayjob.yaml: compute.num_workers 16 of 10 CPUs and 1 GPU each: room")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("kind: Pod", "neither a RayJob"),
        ("[1, 2]", "neither a RayJob"),
        (
            "kind: RayJob\nmetadata: {}\nspec: {entrypoint: x}",
            "spec.rayClusterSpec: Field required",
        ),
        (
            "available_node_types: {}\nhead_node_type: h\nprovider: {type: aws}",
            "head_node_type 'h'",
        ),
        ("kind: RayJob\n---\nkind: RayJob", "2 documents of kind RayJob"),
        ("#!/bin/bash\n#SBATCH --nodes=many", "--nodes=many"),
        ("#!/bin/bash\n#SBATCH --nodes=1 --time=soon", "--time=soon"),
    ],
)
def test_what_is_no_manifest_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "missing")


def test_what_is_wrong_in_a_manifest_is_said_by_its_place(tmp_path: Path) -> None:
    path = changed(RAYJOB, tmp_path, lambda j: set_limits(j, memory="many"))
    place = r"workerGroupSpecs\.0\.template\.spec\.containers\.0\.resources\.limits\.memory: 'many'"
    with pytest.raises(UserError, match=place):
        read_manifest(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--gpus-per-node=4", 4),
        ("--gpus-per-node=h100:4", 4),
        ("--gres=gpu", 1),
        ("--gres=gpu:a100:8", 8),
        ("--gpus=8", 4),
        ("-G 8", 4),
        ("--gpus-per-task=2 --ntasks-per-node=2", 4),
        ("", 0),
    ],
)
def test_gpus_of_a_slurm_node(options: str, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text(f"#!/bin/bash\n#SBATCH -N 2 {options}\n")
    (group,) = read_manifest(path).groups
    assert (group.most, group.gpus) == (2, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500m", 0.5), (4, 4), ("4", 4), ("24Gi", 24 * 2**30), ("2G", 2e9), ("1e3", 1000)],
)
def test_quantities_of_kubernetes(text: str | float, expected: float) -> None:
    assert quantity(text) == expected


@pytest.mark.parametrize("text", ["4 Gi b", "many", ""])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 1800),
        ("30:10", 1810),
        ("01:00:10", 3610),
        ("2-3", 183_600),
        ("2-3:30", 185_400),
        ("1-00:00:01", 86_401),
    ],
)
def test_time_limits_of_slurm(text: str, expected: int) -> None:
    assert seconds_of(text) == expected


def test_the_command_among_others_is_found() -> None:
    command = command_in(["python", "-m", "glray", "run", "a.py", "--set", "x=1", "--set=y=2", "&"])
    assert command is not None
    assert (command.verb, command.pipeline, command.overrides) == ("run", "a.py", ("x=1", "y=2"))
    assert command_in(["glray", "--version"]) is None
    assert command_in(["pip", "install", "glray"]) is None


def test_variables_of_shell_commands() -> None:
    command = 'ulimit -n 6; A=token B="x y" C=$HOME ray start --port=6379'
    assert assignments([command]) == {"A": "token", "B": "x y", "C": None}
