"""What ``glray recommend`` prints: the study's schedules with their prices, and which to train."""

from collections.abc import Sequence

from glray.data.corpus import PreparedCorpus
from glray.report.recommend import Findings, Priced, best
from glray.report.sheets import Sheet
from glray.run.profile import Profile
from glray.spec.schedule import ArmSpec


def recommendation(
    findings: Findings,
    found: Sequence[Priced],
    full: int,
    profile: Profile,
    corpus: PreparedCorpus | None,
) -> list[Sheet | str]:
    """The table, the answer, and how far to trust it."""
    trusted = trust(findings, found, full, profile, corpus)
    return [schedules_sheet(found), f"\n{answer(best(found), full)}", f"\n{trusted}"]


def schedules_sheet(found: Sequence[Priced]) -> Sheet:
    """One row a schedule, fastest first."""
    rows = [
        (
            each.arm.name,
            _stages(each.arm),
            f"{each.time:.2f}",
            f"{each.tried.worth[0]:.2f}",
            _interval(each),
        )
        for each in found
    ]
    columns = ("schedule", "share of tokens", "time", "worth", "time to loss")
    note = (
        "Time: over that of the full length throughout, on as many tokens. Worth: how many times "
        "as many tokens the full length needs for the same loss. Time to loss: time over worth "
        "(95% over the study's seeds)."
    )
    return Sheet("", columns, rows, [note], left=(0, 1))


def answer(chosen: Priced, full: int) -> str:
    """Which schedule to train."""
    mean, low, high = chosen.time_to_loss
    if not chosen.pays:
        return (
            f"Train at {full:,} throughout: no schedule was clearly faster in the study. The best, "
            f"{chosen.arm.name}, takes {_interval(chosen)} of its time for the same loss."
        )
    stages = ", ".join(
        f"StageSpec(seq_len={stage.seq_len}, ratio={stage.ratio:g})" for stage in chosen.arm.stages
    )
    return (
        f"Train {chosen.arm.name}: it should take {mean:.0%} ({low:.0%} to {high:.0%}) of the time "
        f'that {full:,} throughout needs for the same loss. With ratios_in="tokens":\n'
        f'ArmSpec(name="{chosen.arm.name}", stages=({stages}))'
    )


def trust(
    findings: Findings,
    found: Sequence[Priced],
    full: int,
    profile: Profile,
    corpus: PreparedCorpus | None,
) -> str:
    """What the numbers rest on."""
    short, long = findings.seq_lens[0], findings.seq_lens[-1]
    seeds = sorted({each.tried.num_seeds for each in found})
    sentences = [
        f"Worth was measured from {short:,} to {long:,} tokens, under "
        f"{' or '.join(map(str, seeds))} seeds of {findings.num_tokens / 1e6:.1f} M tokens with "
        f"{findings.num_parameters / 1e6:.1f} M parameters, and nowhere else. The interval covers "
        "neither the choice of the best schedule nor your model, corpus and machine. glray tune "
        "tries the schedules themselves."
    ]
    if any(each.tried.extended for each in found):
        sentences.append(
            "Where worth is above 1 the full length was not trained on as many tokens: its loss "
            "was extended in a straight line."
        )
    sentences.append(f"Prices are of {profile.machine}.")
    return "\n".join([*sentences, _documents(full, corpus)])


def _documents(full: int, corpus: PreparedCorpus | None) -> str:
    if corpus is None:
        return "The corpus is not prepared, so the lengths of its documents are unknown."
    blocks = [source.blocks for source in corpus.sources]
    power = 1 << (full.bit_length() - 1)
    long = sum(each.at_least(power)[1] for each in blocks)
    share = long / max(1, sum(each.num_tokens for each in blocks))
    warning = (
        ": a window of the full length mostly joins unrelated documents, so there is little long "
        "context to learn"
        if share < 0.5
        else ""
    )
    return f"{share:.0%} of the corpus's tokens are in documents of at least {power:,}{warning}."


def _stages(arm: ArmSpec) -> str:
    whole = sum(stage.ratio for stage in arm.stages)
    return " ".join(f"{stage.seq_len:,}: {stage.ratio / whole:.0%}" for stage in arm.stages)


def _interval(each: Priced) -> str:
    mean, low, high = each.time_to_loss
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
