"""Imports run one way, and only `glray/ray/` imports Ray."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "glray"

# Each layer may import itself and the layers before it.
LAYERS = (
    ("errors", "progress"),
    ("files",),
    ("machine", "spec"),
    ("storage", "record"),
    ("plan",),
    ("tree",),
    ("run",),
    ("data", "model"),
    ("train",),
    ("search", "report", "manifest"),
    ("ray",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

WITHOUT_TORCH = {
    "errors",
    "progress",
    "files",
    "machine",
    "storage",
    "spec",
    "record",
    "plan",
    "tree",
    "run",
    "search",
    "report",
    "manifest",
    "cli",
}


def imports(source: str) -> set[str]:
    """Every module that a source imports, at its top or in a function, by its full name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            assert node.module is not None
            names.add(node.module)
            if node.module == "glray":
                names |= {f"glray.{alias.name}" for alias in node.names}
    return names


def violations(module: str, source: str) -> list[str]:
    """What in ``source``, the text of ``module``, breaks the layers."""
    found = []
    layer = module.split(".")[1]
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        if top == "glray" and rest and rest != "__version__":
            imported = rest.split(".")[0]
            if imported != layer and RANK[imported] >= RANK[layer]:
                found.append(f"{module} imports {name}, which is not below it")
        if top == "ray" and layer != "ray":
            found.append(f"{module} imports {name}, outside of glray/ray/")
        if top == "torch" and layer in WITHOUT_TORCH:
            found.append(f"{module} imports {name}")
    return found


def sources() -> list[tuple[str, str]]:
    """(module, source) of every file of the package, its root apart."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if module != "glray":
            found.append((module, path.read_text()))
    return found


def test_every_module_keeps_to_its_layer() -> None:
    found = [violation for module, source in sources() for violation in violations(module, source)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glray.spec.compute", "from glray.plan import Plan"),
        ("glray.plan", "import glray.train.loop"),
        ("glray.data.order", "from glray.model.loss import NextTokenLoss"),
        ("glray.model.loss", "def f():\n    from glray.train import loop"),
        ("glray.report.sheets", "from glray.ray.tune import search"),
        ("glray.plan", "import torch"),
        ("glray.spec.model", "import torch.nn as nn"),
        ("glray.report.page", "from torch import Tensor"),
        ("glray.train.loop", "import ray"),
        ("glray.data.order", "def f():\n    import ray.data"),
        ("glray.plan", "from ray import train"),
        ("glray.plan", "from glray import cli"),
    ],
)
def test_a_violation_is_seen(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glray.ray.train", "import ray.train\nfrom glray.ray.stream import ray_batches"),
        ("glray.cli", "from glray.ray.tune import search"),
        ("glray.data.windows", "import rayon_like_name\nfrom glray.plan import Plan"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_files_have_a_subject() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path


def test_a_driver_does_not_import_the_models_code() -> None:
    # It takes seconds, and a run that is resumed waits for the driver first.
    code = (
        "import sys, glray.cli, glray.run.run, glray.ray.train\n"
        "sys.exit('transformers.modeling_utils' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_benchmarks_import_what_there_is() -> None:
    # They run for minutes to hours, and not here: a name that has moved would go unseen.
    for path in sorted((PACKAGE.parent / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            if module.partition(".")[0] == "glray":
                for alias in node.names:
                    assert hasattr(importlib.import_module(module), alias.name), (
                        f"{path.name} imports {alias.name} from {module}"
                    )
