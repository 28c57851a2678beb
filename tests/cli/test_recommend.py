"""``glray recommend``: the packaged study at a profile's prices."""

from pathlib import Path

from typer.testing import CliRunner

from glray.cli import app
from glray.errors import UserError
from glray.run.profile import LengthCost, Profile, SettingCosts, own_setting, profile_path
from glray.spec.loading import to_yaml

from ..tiny import tiny_spec


def test_a_schedule_is_named_where_a_profile_has_its_prices(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path / "runs").resolved()
    pipeline = tmp_path / "spec.yaml"
    pipeline.write_text(to_yaml(spec))
    command = ["recommend", str(pipeline)]

    unpriced = CliRunner().invoke(app, command)
    assert isinstance(unpriced.exception, UserError)
    assert f"run glray profile {pipeline} --seq-lens 4,8,16,32" in str(unpriced.exception)

    seconds = {4: 1.0, 8: 1.0, 16: 1.1, 32: 1.2}
    lengths = tuple(LengthCost(n, None, None, (cost,)) for n, cost in seconds.items())
    Profile(
        pipeline="tiny",
        tokens_per_batch=64,
        budget_bytes=2**30,
        environment={"processor": "an abacus"},
        settings=(SettingCosts(own_setting(spec), lengths),),
    ).keep(profile_path(spec))
    named = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert named.exit_code == 0, named.output
    assert "4: 25% 8: 25% 16: 25% 32: 25%" in named.output
    assert "Prices are of an abacus." in named.output
    assert "The corpus is not prepared" in named.output
    assert list(tmp_path.glob("runs/*")) == [tmp_path / "runs" / "profiles"]
