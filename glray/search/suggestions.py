"""What Optuna suggests, kept in a file, so that a killed search goes on where it was."""

import json
import warnings
from hashlib import sha256
from importlib.util import find_spec
from math import isfinite
from typing import Any

from glray.errors import UserError
from glray.files import AnyPath, LineLog, read_log
from glray.search.space import Candidate, Space, SuggestingTrial

JOURNAL = "optuna.journal"
CHOSEN_BESIDE_THE_SPACE = (
    "method",
    "num_trials",
    "seed",
    "max_behind",
    "confirm",
    "confirm_seeds",
)
"""Fields of a search that may change between two calls while its space stays the same."""


class Suggestions:
    """An Optuna study over a space (https://optuna.readthedocs.io): a tree-structured Parzen
    estimator that is told each candidate's loss, and assumes a bad loss for those that still train,
    so that several can train at once."""

    def __init__(self, space: Space, directory: AnyPath) -> None:
        """Raises UserError if Optuna is not installed."""
        validate_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directory.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(_backend(directory / JOURNAL))
        self._space = space
        self._study = optuna.create_study(
            storage=storage, study_name=_name(space), load_if_exists=True, direction="minimize"
        )
        asked = self._study.get_trials(deepcopy=False)
        suggested = {
            trial.number: candidate
            for trial in asked
            if (candidate := _whole(space, optuna.trial.FixedTrial(trial.params))) is not None
        }
        ended = {trial.number for trial in asked if trial.state.is_finished()}
        self._begun = {n: its for n, its in suggested.items() if n not in ended}
        self.ended = [suggested[number] for number in sorted(ended)]
        """Candidates of earlier calls over this space that were trained to their end, in that
        order."""
        seed = (space.search.seed + len(asked)) % 2**32  # NumPy's seeds
        with warnings.catch_warnings():  # it calls these options experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            )

    def ask(self) -> tuple[int, Candidate]:
        """A candidate and its number; first those that an earlier call began and did not end."""
        if self._begun:
            number = min(self._begun)
            return number, self._begun.pop(number)
        trial: Any = self._study.ask()
        return trial.number, self._space.suggest(trial)

    def tell(self, number: int, loss: float | None) -> None:
        """The loss of a candidate; None or NaN if it diverged or was stopped."""
        from optuna.trial import TrialState

        if loss is None or not isfinite(loss):
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, loss)


def _name(space: Space) -> str:
    """Of the space's study. Parameters are places in the space, so in another one they would be
    other candidates: it has a study of its own, in the same journal."""
    chosen = space.search.model_dump_json(exclude=set(CHOSEN_BESIDE_THE_SPACE))
    lists = [family.seq_lens for family in space.families]
    return f"search {sha256(f'{lists} {chosen}'.encode()).hexdigest()[:16]}"


def _whole(space: Space, asked: SuggestingTrial) -> Candidate | None:
    """What an earlier call was suggested; None if it was killed between two of its parameters."""
    try:
        return space.suggest(asked)
    except ValueError:
        return None


def _backend(path: AnyPath) -> Any:
    """Where Optuna's journal is kept. It has one writer, which holds the search's folder, so it
    takes none of Optuna's locks, which outlive a kill."""
    from optuna.storages.journal import BaseJournalBackend

    class Journal(BaseJournalBackend):  # type: ignore[misc]  # Optuna's are Any
        """Optuna's lines, in memory and in a log. One that was cut short when a disk was full is
        left out."""

        def __init__(self) -> None:
            lines = [line for line in read_log(path).splitlines(True) if line.endswith(b"\n")]
            self._logs = [json.loads(line) for line in lines]
            self._file = LineLog(path)
            self._file.keep(lines)

        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            """See BaseJournalBackend."""
            return self._logs[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            """See BaseJournalBackend."""
            self._logs += logs
            self._file.append([f"{json.dumps(log)}\n".encode() for log in logs])
            self._file.flush()

    return Journal()


def validate_optuna() -> None:
    """Raises UserError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise UserError(
            "search.method optuna: the package optuna is not installed, so nothing would be "
            "suggested; pip install 'glray[optuna]', or --set search.method=tree"
        )
