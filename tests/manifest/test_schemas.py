"""The manifests that ship are what those who read them take: KubeRay, Kubernetes, Ray's cluster
launcher, EC2, bash."""

import json
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from glray.manifest.nodes import command_in, words_of

REPOSITORY = Path(__file__).parents[2]
FIXTURES = Path(__file__).parents[1] / "fixtures"
RAYJOBS = ("rayjob.yaml", "kueue.yaml")
QUEUE = "kueue.x-k8s.io/queue-name"


def rayjob(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((REPOSITORY / "kuberay" / name).read_text())
    (found,) = (document for document in documents if document["kind"] == "RayJob")
    return found


def rayjob_errors(job: dict[str, Any]) -> list[str]:
    """What the schemas of KubeRay and Kubernetes say against a RayJob."""
    defs: dict[str, Any] = {}
    for name in ("kuberay-1.7-rayjob.json", "kubernetes-1.34-pod.json"):
        defs |= json.loads((FIXTURES / name).read_text())["$defs"]
    schema = {"$ref": "#/$defs/RayJob", "$defs": defs}
    return [error.message for error in Draft202012Validator(schema).iter_errors(job)]


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_has_the_fields_of_kuberay_and_kubernetes(name: str) -> None:
    assert rayjob_errors(rayjob(name)) == []


@pytest.mark.parametrize(
    "place",
    [
        ("spec",),
        ("spec", "rayClusterSpec"),
        ("spec", "rayClusterSpec", "headGroupSpec"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "tolerations", 0),
    ],
)
def test_a_misspelled_field_is_seen(place: tuple[str | int, ...]) -> None:
    job = node = rayjob("rayjob.yaml")
    for key in place:
        node = node[key]  # type: ignore[index]
    node["mispelled"] = "x"
    (message,) = rayjob_errors(job)
    assert "mispelled" in message


def test_the_variant_with_a_queue_differs_in_the_queue_alone() -> None:
    queued = rayjob("kueue.yaml")
    assert queued["metadata"].pop("labels") == {QUEUE: "glray"}
    assert queued == rayjob("rayjob.yaml")


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_runs_a_pipeline_of_the_image(name: str) -> None:
    command = command_in(words_of(rayjob(name)["spec"]["entrypoint"]))
    assert command is not None
    assert command.pipeline is not None
    (folder,) = re.findall(r"^WORKDIR (/opt/.*)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    assert (REPOSITORY / Path(command.pipeline).relative_to(folder)).is_file()


def launcher() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def as_ray_reads(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray's launcher makes of a file. Raises jsonschema's ValidationError."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_the_cluster_launcher_takes_cluster_yaml() -> None:
    prepared = as_ray_reads(launcher())
    # With nothing said, Ray adds commands of its own, for another image than ours.
    assert prepared["head_setup_commands"] == prepared["setup_commands"]
    assert prepared["worker_setup_commands"] == prepared["setup_commands"]
    assert any("glray[cluster]" in command for command in prepared["setup_commands"])
    assert (REPOSITORY / "constraints.txt").is_file()
    assert set(prepared["rsync_exclude"]) >= {".venv", ".git", "runs"}


@pytest.mark.parametrize("place", [(), ("available_node_types", "gpu")])
def test_the_cluster_launcher_refuses_an_unknown_key(place: tuple[str, ...]) -> None:
    from jsonschema import ValidationError

    config = node = launcher()
    for key in place:
        node = node[key]
    node["max_wrokers"] = 3
    with pytest.raises(ValidationError, match="max_wrokers"):
        as_ray_reads(config)


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_ec2_takes_a_node(name: str) -> None:
    """The parameters are those of RunInstances, by AWS's own model."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    node = launcher()["available_node_types"][name]["node_config"]
    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = node | {"MinCount": 1, "MaxCount": 1}
    assert ParamValidator().validate(request, shape).generate_report() == ""
    wrong = request | {"InstanceTyp": "m6i.large"}
    assert "InstanceTyp" in ParamValidator().validate(wrong, shape).generate_report()


def test_bash_reads_the_slurm_script() -> None:
    script = REPOSITORY / "slurm" / "glray.sbatch"
    assert script.stat().st_mode & 0o111
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_spot_notice_ends_the_command_by_sigterm(tmp_path: Path) -> None:
    """Against metadata as AWS serves them: a token, then 404 until the notice is there."""
    asked: list[tuple[str, str | None]] = []

    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200, b"a token")

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("X-aws-ec2-metadata-token")))
            self.answer(404 if len(asked) < 3 else 200, b'{"action": "terminate"}')

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name)
            pass

    drained = tmp_path / "drained"
    node = f"trap 'touch {drained}; exit 0' TERM; while true; do sleep 0.1; done"
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [REPOSITORY / "aws" / "until_notice.sh", "bash", "-c", node],
            env=os.environ
            | {"METADATA": f"http://127.0.0.1:{server.server_port}", "POLL_SECONDS": "0.1"},
            capture_output=True,
            timeout=60,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert drained.exists()
    assert asked == [("/latest/meta-data/spot/instance-action", "a token")] * 3


@pytest.mark.soak
def test_the_cluster_launcher_starts_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own launcher against an EC2 that is played: an on-demand head, spot workers, and no
    port but SSH's open to others."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.aws.config import bootstrap_aws

    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key that it makes
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    config = launcher()
    region = config["provider"]["region"]
    for kind in config["available_node_types"].values():
        kind["node_config"]["IamInstanceProfile"] = {"Name": "glray"}
    with mock_aws():
        boto3.client("iam", region).create_instance_profile(InstanceProfileName="glray")
        config = bootstrap_aws(as_ray_reads(config))
        provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
        for name in ("head", "gpu"):
            node = config["available_node_types"][name]["node_config"]
            provider._create_node(node, {"ray-node-type": name}, 1)
        ec2 = boto3.client("ec2", region)
        instances = [
            instance
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        ]
        groups = ec2.describe_security_groups()["SecurityGroups"]
    assert [(i["InstanceType"], i.get("InstanceLifecycle")) for i in instances] == [
        ("m6i.xlarge", None),
        ("g6e.12xlarge", "spot"),
    ]
    (group,) = (group for group in groups if group["GroupName"] == "ray-autoscaler-glray")
    opened = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in opened] == [(22, 22)]
