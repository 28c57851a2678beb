"""What glray tune says before it begins."""

from pathlib import Path

import pytest

from glray.cli.search import tune
from glray.errors import UserError
from glray.search import suggestions


def test_a_search_without_optuna_is_refused_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggestions, "find_spec", lambda name: None)
    storage = tmp_path / "runs"
    with pytest.raises(UserError, match="optuna is not installed"):
        tune("pipelines/search.py", [f"compute.storage={storage}", "search.method=optuna"])
    assert not storage.exists()
