"""What a thread is busy with, and how long is left."""

import threading
from copy import copy

from hypothesis import given
from hypothesis import strategies as st

from glray.progress import Work, advance, heard_by, seconds_left, working


def test_what_is_left_takes_as_long_as_what_is_done_did() -> None:
    assert seconds_left(done=1, total=4, seconds=10) == 30
    assert seconds_left(done=4, total=4, seconds=10) == 0
    assert seconds_left(done=5, total=4, seconds=10) == 0  # more than was known of
    assert seconds_left(done=0, total=4, seconds=10) is None
    assert seconds_left(done=1, total=0, seconds=10) is None


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 1e9), st.floats(1e-6, 1e6))
def test_no_time_left_is_negative_and_the_unit_does_not_matter(
    done: float, total: float, seconds: float, unit: float
) -> None:
    left = seconds_left(done, total, seconds)
    assert left is None or left >= 0
    if left is not None and done * unit > 0 and 1e-300 < done < total:
        scaled = seconds_left(done * unit, total * unit, seconds)
        assert scaled is not None
        assert abs(scaled - left) <= 1e-6 * left


def test_the_innermost_work_is_heard_until_it_ends_then_the_one_around_it() -> None:
    heard: list[Work | None] = []
    with heard_by(lambda work: heard.append(copy(work))):
        with working("training", run="grow-seed0"):
            advance(detail="step 4")
            with working("evaluating", 10):
                advance(4, note="fast")
                advance(6)
        advance(1)  # nothing is worked on: nobody is told
    seen = [work and (work.run, work.what, work.done, work.note, work.detail) for work in heard]
    assert seen == [
        ("grow-seed0", "training", 0, "", None),
        ("grow-seed0", "training", 0, "", "step 4"),
        ("grow-seed0", "evaluating", 0, "", None),
        ("grow-seed0", "evaluating", 4, "fast", None),
        ("grow-seed0", "evaluating", 10, "fast", None),
        ("grow-seed0", "training", 0, "", "step 4"),
        None,
    ]


def test_each_thread_has_its_own_work_and_listener() -> None:
    heard: list[str] = []

    def beside() -> None:
        with working("beside"):  # nobody listens here
            advance(1)

    with heard_by(lambda work: heard.append(work.what if work else "")), working("here"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert heard == ["here", ""]


def test_a_work_that_fails_has_ended() -> None:
    heard: list[Work | None] = []
    try:
        with heard_by(heard.append), working("failing"):
            raise ValueError
    except ValueError:
        pass
    assert heard[-1] is None
