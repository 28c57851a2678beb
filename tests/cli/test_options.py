"""What commands say: the library's errors under the names of their options, and Ctrl-C."""

import pytest
import typer

from glray.cli.app import naming_options, resumable
from glray.cli.runs import EVAL_OPTIONS
from glray.errors import UserError


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("seq_lens: 12 does not divide", "--seq-lens: 12 does not divide"),
        ("stride 17: a window", "--stride 17: a window"),
        ("num_tokens 63 is less", "--num-tokens 63 is less"),
        ("positions x: not one of", "--positions x: not one of"),
        ("documents: a window of 8 tokens", "--documents: a window of 8 tokens"),
        ("nothing to score; name documents", "nothing to score; name --documents"),
        ("corpus.paths: no.txt", "--documents: no.txt"),
        ("a.jsonl: set corpus.column", "a.jsonl: set --column"),
        ("a: the stride of documents", "a: the stride of documents"),
    ],
)
def test_an_error_of_eval_names_the_option(said: str, shown: str) -> None:
    with pytest.raises(UserError) as error, naming_options(EVAL_OPTIONS):
        raise UserError(said)
    assert str(error.value) == shown


def test_ctrl_c_says_that_the_same_command_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, resumable():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().out == "stopped; the same command resumes\n"
