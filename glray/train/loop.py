"""The training loop of one worker: stage by stage, batch by batch, event by event.

It knows a run and a WorkerContext, not Ray, and no clock decides what is computed: the plan says
which stage a step belongs to, what the learning rate is and what is done after the step. Further
checkpoints come by the clock (``RunSession.ending``).
"""

from glray.data.corpus import PreparedCorpus
from glray.plan import Event
from glray.progress import working
from glray.run.records import Execution
from glray.run.run import Run
from glray.train.boundaries import evaluate, rescore
from glray.train.context import WorkerContext
from glray.train.session import Ending, NeededSteps, RunSession, open_session


def train(
    run: Run,
    corpus: PreparedCorpus,
    ctx: WorkerContext,
    execution: Execution,
    peak: float,
    needed: NeededSteps = dict,
) -> Ending:
    """Train a run to its end, from its latest checkpoint, unless something stops it before.

    ``peak`` is the FLOP/s of all workers' matrix products, for MFU; ``needed`` says which of its
    checkpoints others are to fork from. Leaves checkpoints, metrics, evaluations, ``model/`` and
    ``result.json``; for a run that diverges, ``diverged.json``.
    """
    with (
        working("training", run=run.name),
        open_session(run, corpus, ctx, execution, peak, needed) as session,
    ):
        catch_up(session)
        if ending := session.ending():
            return ending
        for stage, batches in session.stages():
            session.enter(stage)
            for batch in batches:
                session.step(batch)
                for event in run.plan.events_after(session.state.step):
                    attend(session, event)
                    if session.has_diverged:
                        break
                if ending := session.ending():
                    return ending
        return session.finish()


def attend(session: RunSession, event: Event) -> None:
    """Do what the plan asks for after the state's step. Of this only logging is training time."""
    if event is Event.LOG:
        session.flush()
        return
    session.catch_up_with_device()
    if session.has_diverged:
        return
    with session.watch.paused():
        if event is Event.RESCORE:
            rescore(session)
            session.look_at_guard()
        elif event is Event.CHECKPOINT:
            if session.are_weights_finite():
                session.save()
            else:
                session.diverge("weights")
        elif event is Event.EVALUATE:
            evaluate(session)


def catch_up(session: RunSession) -> None:
    """Score what a kill kept from following the state's checkpoint; ask the guard again."""
    step = session.state.step
    if step and Event.EVALUATE in session.run.plan.events_after(step):
        evaluate(session)
    session.look_at_guard()
