"""One self-contained HTML page of any set of runs: no scripts, no links, plots inside."""

import base64
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from glray.errors import UserError
from glray.files import write_text
from glray.report import sheets
from glray.report.arms import eval_seq_lens, labelled, longest_trained
from glray.report.headline import headline
from glray.report.long_losses import LongLosses, long_sheet
from glray.report.plots import draw
from glray.report.render import html
from glray.run.run import Run
from glray.spec.loading import to_yaml


def write_report(
    runs: list[Run],
    directory: Path,
    *,
    title: str | None = None,
    verdicts: Sequence[str] = (),
    long_losses: LongLosses = MappingProxyType({}),
) -> Path:
    """Write the plots and ``report.html`` into ``directory``; returns the page's path.

    A comparison has a ``title``, ``verdicts`` that come before anything else, and may have scored
    long documents. Raises UserError if there is no run.
    """
    if not runs:
        raise UserError(f"{directory}: 0 runs to report, a report needs at least 1; name one")
    seq_lens = eval_seq_lens(runs)
    results = [sheets.training(runs), sheets.heldout(runs, seq_lens, seq_lens)]
    if long_losses:
        results.append(long_sheet(runs, long_losses))
    details = [sheets.stage_ends(runs), sheets.boundaries(runs), sheets.jumps(runs)]
    details += [sheets.stages(runs), sheets.identities(runs)]
    plots = draw(runs, directory, long_losses)
    scored = {
        (run.latest.num_target_tokens, run.latest.num_documents)
        for run in runs
        if run.latest is not None
    }
    page = html(
        "page.html.j2",
        title=title or " and ".join(dict.fromkeys(run.pipeline for run in runs)),
        sentences=[*verdicts, *headline(runs)],
        results=[sheet for sheet in results if sheet.rows],
        plots={path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in plots},
        details=[sheet for sheet in details if sheet.rows],
        specs=[(label, to_yaml(run.spec)) for label, run in labelled(runs)],
        targets=" or ".join(f"{t:,} tokens of {d:,} documents" for t, d in sorted(scored)),
        num_seeds=len({run.seed for run in runs}),
        seq_lens=seq_lens,
        longest=longest_trained(runs),
    )
    path = directory / "report.html"
    write_text(path, page)
    return path
