"""The calibration: what one optimizer step costs at each length, measured once before step 0.

All lengths of all arms are timed in one process, interleaved, in alternating order, on the same
workers, precision and micro-batch as training, on random tokens with a scratch model. A length's
turn is a burst of steps whose first is not counted: right after another length a step is slower (at
1024 on two cores 699 ms against a median of 620 was seen; memory changes sizes), which in training
happens once a stage. Of the others the fastest counts: what else slows a step is not its length.
The cost of a length is the median over its turns (of two the faster), of the slowest rank.

All of that is done several times, each with a new model, and the mean counts: how far apart they
are belongs to every comparison at equal time. (How much starts of a command differ, they do not
show.)
"""

import gc
import statistics
import time
from collections.abc import Sequence

from glray.data.corpus import PreparedCorpus
from glray.model.config import longest_config
from glray.progress import advance
from glray.run.records import Execution, Repetitions
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext, from_rank_zero, most_over_ranks
from glray.train.parallel import release_models
from glray.train.trainee import Trainee

BURST = 3
"""Steps of one turn, the first not counted."""
MIN_ROUNDS = 2
MAX_ROUNDS = 25
ENOUGH_SECONDS = 12.0
"""Rounds go on until this much is measured, between the two bounds above."""
REPETITIONS = 3
"""Each of a third of the rounds and seconds."""


def calibrate(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, execution: Execution
) -> Repetitions:
    """Microseconds of one optimizer step by sequence length, the same on every rank; of each
    repetition. What models before it hold of memory is given back first, and what its own hold
    afterwards."""
    release_models()
    repetitions = []
    for _ in range(REPETITIONS):
        repetitions.append(_costs(spec, corpus, ctx, execution))
        gc.collect()  # its model, which refers to itself; the next one uses its graphs again
    release_models()
    return repetitions


def _costs(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, execution: Execution
) -> dict[int, int]:
    ids = corpus.vocabulary
    config = longest_config(spec, vocab_size=ids.vocab_size, eos_id=ids.eos_id)
    trainee = Trainee.scratch(config, spec, ctx, execution)
    if trainee.has_to_warm_up:
        trainee.warm_up(map(trainee.random_batch, spec.all_seq_lens))
    seconds = interleaved_steps(trainee, spec.all_seq_lens, share=1 / REPETITIONS)
    medians = {n: round(statistics.median_low(seconds[n]) * 1_000_000) for n in seconds}
    return {n: max(1, most_over_ranks(ctx, medians[n])) for n in medians}


def interleaved_steps(
    trainee: Trainee, lengths: Sequence[int], *, min_rounds: int = MIN_ROUNDS, share: float = 1.0
) -> dict[int, list[float]]:
    """Seconds of a step of each length's turns, as the module says, in the order they were taken;
    every rank goes through as many turns. ``share`` of the most rounds and seconds are taken. All
    of it advances the work that it is done in by 1."""
    batches = {length: trainee.random_batch(length) for length in lengths}
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    most_rounds, enough_seconds = max(min_rounds, round(share * MAX_ROUNDS)), share * ENOUGH_SECONDS
    start, done = time.perf_counter(), 0.0
    for round_number in range(most_rounds):
        turns = lengths if round_number % 2 == 0 else reversed(lengths)
        for turn, length in enumerate(turns, 1):
            burst = [trainee.step_seconds(batches[length]) for _ in range(BURST)]
            seconds[length].append(min(burst[1:]))
            rounds = round_number + turn / len(lengths)
            measured = time.perf_counter() - start
            least = min(rounds / min_rounds, measured / max(measured, enough_seconds))
            before, done = done, min(1.0, max(rounds / most_rounds, least))
            advance(done - before)
        enough = measured > enough_seconds and round_number + 1 >= min_rounds
        if from_rank_zero(trainee.ctx, int(enough)):
            break
    advance(1.0 - done)
    return seconds
