"""Reading a pipeline from a Python file or its resolved YAML, and overriding fields by path."""

import importlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from glray.errors import UserError
from glray.files import AnyPath, as_path
from glray.spec.base import Spec
from glray.spec.comparison import ComparisonSpec
from glray.spec.identity import RUN_VERSION
from glray.spec.pipeline import PipelineSpec

Declared = TypeVar("Declared", PipelineSpec, ComparisonSpec)


def load_pipeline(reference: AnyPath | str, overrides: list[str] | None = None) -> PipelineSpec:
    """The pipeline that a file declares, with ``a.b=c`` overrides applied and validated.

    ``FILE.py`` defines ``pipeline()``, which returns a ``PipelineSpec``; ``FILE.py:NAME`` is
    another function of the file, or ``object.method``; ``FILE.yaml`` is what a run left behind.
    Raises UserError.
    """
    path, name = _split(str(reference))
    if path.suffix == ".py":
        declared = _from_python(path, name or "pipeline", PipelineSpec).model_dump()
    elif path.suffix in (".yaml", ".yml"):
        declared = _from_yaml(path)
    else:
        raise UserError(f"{path}: a pipeline is a .py or .yaml file, not {path.suffix or 'this'}")
    for override in overrides or []:
        _apply(declared, override)
    return validate(declared, str(reference))


def load_comparison(
    reference: Path | str, overrides: list[str] | None = None, num_seeds: int | None = None
) -> ComparisonSpec:
    """The comparison that ``FILE.py:NAME`` returns, the overrides applied to each of its pipelines,
    those of its ``context`` and ``rates`` to itself.

    ``num_seeds`` replaces their seeds by 0 … ``num_seeds - 1``. Raises UserError.
    """
    path, name = _split(str(reference))
    if path.suffix != ".py" or name is None:
        raise UserError(
            f"{reference}: a comparison is a function of a Python file; write it as FILE.py:NAME"
        )
    declared = _from_python(path, name, ComparisonSpec).model_dump()
    for override in overrides or []:
        if override.startswith("name="):
            raise UserError(
                f"--set {override}: runs are known by their pipelines' names; to train "
                "them again use another folder, --set compute.storage=FOLDER"
            )
        pipelines = [compared["pipeline"] for compared in declared["arms"]]
        is_own = re.match(r"(context|rates)[.=]", override)
        for overridden in [declared] if is_own else pipelines:
            _apply(overridden, override)
    for compared in declared["arms"]:
        if num_seeds is not None:
            compared["pipeline"]["seeds"] = tuple(range(num_seeds))
        validate(compared["pipeline"], f"{reference}: {compared['label']}")
    return _validated(ComparisonSpec, declared, str(reference))


def validate(declared: dict[str, Any], where: str) -> PipelineSpec:
    """The spec of plain values. Raises UserError that names each wrong field on one line."""
    return _validated(PipelineSpec, declared, where)


def _validated(kind: type[Declared], declared: dict[str, Any], where: str) -> Declared:
    try:
        return kind.model_validate(declared)
    except ValidationError as error:
        raise UserError(f"{where}: {describe(error)}") from None


def _split(reference: str) -> tuple[AnyPath, str | None]:
    """The file and, of ``FILE.py:NAME``, the name. Raises UserError if there is no such file."""
    named = re.fullmatch(r"(.+\.py):([\w.]*)", reference)
    path, name = (as_path(named[1]), named[2]) if named else (as_path(reference), None)
    if not path.is_file():
        raise UserError(f"{path}: no such pipeline file; give a .py or .yaml file")
    if path.suffix == ".py" and not isinstance(path, Path):
        raise UserError(f"{path}: code is not run from a store; copy it to this machine")
    return path, name


def describe(error: ValidationError) -> str:
    """One line for a pydantic error: ``path: message`` of each problem, joined by ``; ``."""
    kinds = _kinds(Spec)
    problems = []
    found = error.errors(include_url=False, include_context=False)
    wrong_items = {problem["loc"][:-1] for problem in found}
    for problem in found:
        place = ".".join(
            str(part)
            for index, part in enumerate(problem["loc"])
            # Neither the tag of a union nor the name of one's branch, which nobody wrote.
            if not (index > 0 and part in kinds) and (isinstance(part, int) or part.isidentifier())
        )
        if problem["type"] == "default_factory_not_called":
            continue  # of a field that is wrong itself, which is another problem
        if problem["type"] == "too_short" and problem["loc"] in wrong_items:
            continue  # without its wrong items, each of which is a problem of its own
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; remove it or correct its spelling"
        elif problem["type"] not in ("value_error", "missing"):
            message += f" (it is {problem['input']!r})"
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)


def to_yaml(spec: PipelineSpec) -> str:
    """The resolved spec as YAML, which ``load_pipeline`` reads back to the same value. Its first
    line is the format's version."""
    declared = {"format": RUN_VERSION} | spec.resolved().model_dump(mode="json")
    return yaml.safe_dump(declared, sort_keys=False, allow_unicode=True)


def _kinds(spec: type[Spec]) -> set[str]:
    """Every ``kind`` that a spec below ``spec`` bears."""
    own = {spec.model_fields["kind"].default} if "kind" in spec.model_fields else set()
    return own.union(*(_kinds(below) for below in spec.__subclasses__()))


def _from_python(path: AnyPath, name: str, kind: type[Declared]) -> Declared:
    """What the function ``name`` of the file returns, which is a ``kind``."""
    assert isinstance(path, Path)
    folder = path.resolve().parent
    try:
        with _importing_from(folder):
            function: Any = SimpleNamespace(**runpy.run_path(str(path)))
            for part in name.split("."):
                function = getattr(function, part, None)
            if not callable(function):
                raise UserError(
                    f"{path}: defines no function {name}() that returns a {kind.__name__}"
                )
            spec = function()
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None
    except SyntaxError as error:
        place = f"{error.filename or path}" + (f": line {error.lineno}" if error.lineno else "")
        raise UserError(f"{place}: {error.msg}") from None
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the person's own code raises
        own = [
            f"{frame.filename}: line {frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path) or Path(frame.filename).parent == folder
        ]
        where = own[-1] if own else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(spec, kind):
        raise UserError(f"{path}: {name}() returned {type(spec).__name__}, not a {kind.__name__}")
    return spec


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Within the block, imports find the modules in ``folder`` first, as beside a script; after it
    those are forgotten, so that another pipeline can import its own of the same name."""
    neighbours = {path.stem for path in folder.glob("*.py")}
    neighbours |= {path.parent.name for path in folder.glob("*/__init__.py")}
    others = {
        name
        for name in neighbours - sys.stdlib_module_names - {"glray"}
        if not _lies_in(sys.modules.get(name), folder)
    }
    hidden = {name: sys.modules.pop(name) for name in _below(others)}
    modules, path = set(sys.modules), sys.path[:]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        new = {name for name in sys.modules if name not in modules and "." not in name}
        for name in _below({name for name in new if _lies_in(sys.modules[name], folder)}):
            del sys.modules[name]
        sys.modules.update(hidden)


def _below(packages: set[str]) -> list[str]:
    """Names of the imported modules that are, or lie in, one of the top-level ``packages``."""
    return [name for name in sys.modules if name.partition(".")[0] in packages]


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Whether the module's file, or the package's folder, lies directly in ``folder``."""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(place and Path(place).resolve().parent == folder for place in places)


def _from_yaml(path: AnyPath) -> dict[str, Any]:
    try:
        declared = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(declared, dict):
        raise UserError(f"{path}: holds {type(declared).__name__}, not a mapping of spec fields")
    version = declared.pop("format", None)
    if version != RUN_VERSION:
        written = "by glray 0.1 (it has no format)" if version is None else f"in format {version}"
        raise UserError(
            f"{path}: written {written}, this glray reads format {RUN_VERSION} with other names; "
            f"load the .py file, or rename the fields and begin with the line format: {RUN_VERSION}"
        )
    return declared


def _apply(declared: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in ``declared``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as path=value, for example budget.seconds=60")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {override}: the value {text[:40]!r} is not YAML") from None
    *parents, last = path.split(".")
    node: Any = declared
    for part in parents:
        node = _child(node, part, override)
    if not isinstance(node, dict):
        raise UserError(f"--set {override}: {'.'.join(parents)} has no fields; set all of it")
    if parents:
        _child(node, last, override)  # it is known
    node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    """The value of a mapping's key, or a list's item by its index or, where it has one, name."""
    children: dict[Any, Any] = node if isinstance(node, dict) else {}
    if isinstance(node, (list, tuple)):
        children = {str(index): item for index, item in enumerate(node)}
        named = [item for item in node if isinstance(item, dict) and "name" in item]
        children |= {item["name"]: item for item in named}
    if part not in children:
        known = ", ".join(map(str, children)) or "none"
        raise UserError(f"--set {override}: unknown key {part!r}; known: {known}")
    return children[part]
