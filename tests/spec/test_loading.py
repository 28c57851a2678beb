"""Pipelines from files, and what a person gets to read when one is wrong."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from glray.errors import UserError
from glray.spec import load_pipeline, to_yaml
from glray.spec.identity import training_identity

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.py"
LLAMA = "{kind: llama, num_layers: 1, intermediate_size: 8, %s}"


def test_the_resolved_yaml_is_the_same_pipeline(tmp_path: Path) -> None:
    spec = load_pipeline(QUICKSTART)
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(spec))
    again = load_pipeline(path)
    assert again == spec.resolved()
    assert to_yaml(again) == to_yaml(spec)


def test_the_resolved_yaml_has_the_same_identity(tmp_path: Path) -> None:
    costs = "calibration={step_microseconds: {128: 1, 256: 2, 512: 3, 1024: 4}}"
    spec = load_pipeline(QUICKSTART, [costs])
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(spec))
    again = load_pipeline(path)
    for before, after in zip(spec.arms, again.arms, strict=True):
        assert training_identity(again, after, 0, []) == training_identity(spec, before, 0, [])


def test_overrides_by_path_by_index_and_by_name() -> None:
    spec = load_pipeline(
        QUICKSTART,
        [
            "budget.seconds=60",
            "arms.growlength.stages.1.ratio=2.5",
            "arms.1.name=fixed",
            "budget={tokens: 8192}",
            "ratios_in=tokens",
        ],
    )
    assert spec.budget.tokens == 8192
    assert spec.budget.seconds is None
    assert spec.arms[0].stages[1].ratio == 2.5
    assert spec.arms[1].name == "fixed"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lrr=1", ("lrr", "lr, betas")),
        ("optimiser.lr=1", ("optimiser", "optimizer")),
        ("colour=red", ("colour", "unknown key")),
        ("arms.nosuch.name=x", ("nosuch", "growlength, llm1024, llm128")),
        ("arms.0.stages.0.ratio=0", ("arms.0.stages.0.ratio", "greater than 0", "0")),
        ("arms.0.stages.0.ratio=-1", ("arms.0.stages.0.ratio", "greater than 0", "-1")),
        ("arms.0.stages.0.ratio=.nan", ("arms.0.stages.0.ratio",)),
        ("tokens_per_batch=5000", ("5,000", "1,024", "4,096 or 5,120")),
        ("arms.0.stages.1.tokens_per_batch=5000", ("stage 1", "5,000", "4,096 or 5,120")),
        ("arms.0.stages.1.lr_factor=0", ("arms.0.stages.1.lr_factor", "greater than 0")),
        ("arms.0.stages.1.weights={nosuch: 2}", ("stage 1", "'nosuch'", "sources are stdlib")),
        ("arms.0.stages.1.weights={stdlib: 0}", ("stage 1", "stdlib out", "nothing to read")),
        ("arms.0.stages.1.weights={stdlib: 1.5}", ("stages.1.weights", "valid integer", "1.5")),
        ("arms.0.stages.0.seq_len=100", ("seq_len 100", "chunk_len 1024")),
        ("chunk_len=3000", ("chunk_len 3000", "1,048,576")),
        ("chunk_len=512", ("seq_len 1024", "chunk_len 512")),
        ("budget.tokens=5", ("budget.tokens is 5", "budget.seconds is 160.0")),
        ("budget={}", ("budget.tokens is None",)),
        ("optimizer.lr=yes", ("optimizer: ", "lr: true is neither a number")),
        ("compute.log_every_steps=true", ("log_every_steps: true is neither a number",)),
        ("model.num_heads=3", ("num_heads 3", "128")),
        ("evaluation.seq_lens=[128, 192]", ("128", "192")),
        ("evaluation.num_tokens=2000", ("2000", "2048")),
        ("seeds=[1, 1]", ("twice",)),
        ("arms.1.name=llm128", ("2 arms", "llm128")),
        ("search.arm=nosuch", ("nosuch", "growlength, llm1024, llm128")),
        ("name=a/b", ("name", "a/b")),
        ("corpus={kind: parquet}", ("corpus.paths", "required")),
        ("corpus={kind: arrow}", (": corpus.paths", "required")),
        ("corpus={kind: mixture, sources: []}", (": corpus.sources:",)),
        ("model=null", ("none of model, init, start is set", "exactly one")),
        ("init=folder", ("model and init are both set", "null unsets")),
        ("model.kind=bert", ("model", "'gpt_neox', 'llama'", "bert")),
        ("model.kind=llama", ("model.rotary_fraction: unknown key",)),
        ("model={kind: llama}", (": model.num_layers:", "required")),
        (f"model={LLAMA % 'num_heads: 64, hidden_size: 64'}", ("num_heads 64", "are 1 wide")),
        (f"model={LLAMA % 'num_heads: 4, hidden_size: 64, num_kv_heads: 3'}", ("3", "num_heads 4")),
        ("novalue", ("path=value",)),
        ("budget.seconds=[", ("not YAML",)),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        load_pipeline(QUICKSTART, [override])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.py", "x = 1\n", ("pipeline()",)),
        ("p.py", "def pipeline():\n    return 3\n", ("int", "PipelineSpec")),
        ("p.py", "def pipeline(:\n", ("line 1",)),
        ("p.py", "def pipeline():\n    return nosuch\n", ("line 2", "NameError", "nosuch")),
        ("p.yaml", "- 1\n", ("list",)),
        ("p.yaml", "a: [\n", ("not YAML",)),
        ("p.yaml", "format: 3\nname: x\n", ("corpus: Field required",)),
        ("p.yaml", "name: x\nratios_share: seconds\n", ("by glray 0.1", "format 3", ".py file")),
        ("p.yaml", "name: x\n", ("it has no format", "format: 3")),
        ("p.yaml", "format: 4\nname: x\n", ("in format 4", "reads format 3")),
        ("p.txt", "", (".py or .yaml",)),
    ],
)
def test_a_wrong_pipeline_file_is_one_clear_line(
    tmp_path: Path, name: str, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_pipeline(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_the_resolved_yaml_begins_with_its_format() -> None:
    assert to_yaml(load_pipeline(QUICKSTART)).startswith("format: 3\nname: quickstart\n")


# ---- what lies beside a pipeline's file

BESIDE = f"""
from common import NAME

def pipeline():
    from helpers.lengths import BATCH  # a package, and only when it is asked for
    from glray.spec import load_pipeline

    return load_pipeline({str(QUICKSTART)!r}, [f"name={{NAME}}", f"tokens_per_batch={{BATCH}}"])
"""


def folder_of(path: Path, name: str, batch: int) -> Path:
    """A pipeline and the modules that it imports."""
    (path / "helpers").mkdir(parents=True)
    (path / "p.py").write_text(BESIDE)
    (path / "common.py").write_text(f"NAME = {name!r}\n")
    (path / "helpers" / "__init__.py").write_text("")
    (path / "helpers" / "lengths.py").write_text(f"BATCH = {batch}\n")
    return path / "p.py"


def test_a_pipeline_imports_its_neighbours_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder_of(tmp_path / "one", "one", 4096)
    two = folder_of(tmp_path / "two", "two", 8192)
    path, modules = sys.path[:], set(sys.modules)
    for file, name, batch in ((one, "one", 4096), (two, "two", 8192), (one, "one", 4096)):
        spec = load_pipeline(file)
        assert (spec.name, spec.tokens_per_batch) == (name, batch)
    monkeypatch.chdir(tmp_path / "two")
    assert load_pipeline("p.py").name == "two"
    assert load_pipeline("../one/p.py").name == "one"
    assert sys.path == path
    assert not {"common", "helpers", "helpers.lengths"} & set(sys.modules) - modules


def test_a_module_of_the_same_name_that_is_imported_already_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder_of(tmp_path / "one", "one", 4096)
    other = ModuleType("common")
    vars(other)["NAME"] = "other"
    monkeypatch.setitem(sys.modules, "common", other)
    assert load_pipeline(file).name == "one"
    assert sys.modules["common"] is other


def test_a_pipeline_loads_another_that_has_a_neighbour_of_the_same_name(tmp_path: Path) -> None:
    inner = folder_of(tmp_path / "inner", "inner", 4096)
    outer = folder_of(tmp_path / "outer", "outer", 4096)
    outer.write_text(
        "from common import NAME\n"
        "from glray.spec import load_pipeline\n"
        "def pipeline():\n"
        f"    inner = load_pipeline({str(inner)!r})\n"
        "    import common\n"
        "    return inner.derive(name=f'{common.NAME}-{NAME}-{inner.name}')\n"
    )
    assert load_pipeline(outer).name == "outer-outer-inner"


def test_a_copy_of_glray_beside_a_pipeline_is_not_another_glray(tmp_path: Path) -> None:
    file = folder_of(tmp_path / "one", "one", 4096)
    (file.parent / "glray").mkdir()
    (file.parent / "glray" / "__init__.py").write_text("raise ImportError\n")
    assert load_pipeline(file).name == "one"


def test_an_error_in_a_neighbour_is_one_clear_line(tmp_path: Path) -> None:
    file = folder_of(tmp_path / "one", "one", 4096)
    common = file.parent / "common.py"
    for text, words in (
        ("NAME = nosuch\n", "NameError: name 'nosuch' is not defined"),
        ("NAME = (\n", "'(' was never closed"),
    ):
        common.write_text(text)
        with pytest.raises(UserError) as error:
            load_pipeline(file)
        assert str(error.value) == f"{common.resolve()}: line 1: {words}"
        assert "common" not in sys.modules


def test_a_missing_pipeline_file() -> None:
    with pytest.raises(UserError, match=r"nosuch\.py: no such pipeline file"):
        load_pipeline(Path("nosuch.py"))
