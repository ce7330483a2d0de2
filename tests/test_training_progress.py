import pytest
from helpers import small_train

from capsnet.training import fit
from capsnet.training import progress as watch


def test_a_standstill_ends_the_process(monkeypatch):
    ended = []

    class Ended(Exception):
        pass

    def end(message, code):
        ended.append((message, code))
        raise Ended

    clock = iter([0.0, 1.0, 1.0, 6.0, 6.0, 20.0])
    monkeypatch.setattr(watch, "end", end)
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    progress = watch.Progress(limit=5)
    progress.on_epoch_begin(0)  # the first step is not timed, and ends at 0
    progress.on_train_batch_end(0)
    progress.on_train_batch_end(1)  # a step of one second: ten of those are the limit
    with pytest.raises(Ended):
        progress._watch()  # looks at 1, 6, 6 and 20
    ((message, code),) = ended
    assert code == 1 and "epoch 1 after step 2" in message and "--resume" in message
    assert next(clock, None) is None


@pytest.fixture
def clock(monkeypatch):
    """A list of the time alone, which passes where somebody sleeps."""
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        watch.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds)
    )
    return clock


def test_steps_are_timed_but_the_first_of_training_and_of_validation(clock):
    progress = watch.Progress()
    assert progress.where() == "in epoch 0 after step 0" and progress.since is None
    seen = []
    for time, call in (
        (1, lambda: progress.on_epoch_begin(0)),
        (100, lambda: progress.on_train_batch_end(0)),
        (102, lambda: progress.on_train_batch_end(1)),
        (103, progress.on_test_begin),
        (300, lambda: progress.on_test_batch_end(0)),
        (304, lambda: progress.on_test_batch_end(1)),
        (305, lambda: progress.on_epoch_begin(1)),
        (306, lambda: progress.on_train_batch_end(0)),
        (307, progress.on_test_begin),
        (308, progress.on_train_end),
    ):
        clock[0] = time
        call()
        seen.append((progress.since, progress.longest, progress.where()[3:]))
    assert seen == [
        (None, 0, "epoch 1 after step 0"),
        (100, 0, "epoch 1 after step 1"),
        (102, 2, "epoch 1 after step 2"),
        (None, 2, "epoch 1 after step 2"),
        (300, 2, "epoch 1 after step 2"),
        (304, 4, "epoch 1 after step 2"),
        (305, 4, "epoch 2 after step 0"),
        (306, 4, "epoch 2 after step 1"),
        (307, 4, "epoch 2 after step 1"),
        (None, 4, "epoch 2 after step 1"),
    ]


@pytest.mark.parametrize("longest, ended", [(0.1, 6), (0.5, 6), (0.7, 8), (2, 21)])
def test_the_limit_is_ten_times_the_longest_step_or_what_is_given(
    clock, monkeypatch, longest, ended
):
    def end(message, code):
        raise InterruptedError(message)

    monkeypatch.setattr(watch, "end", end)
    progress = watch.Progress(limit=5)
    progress.longest, progress.since = longest, 0.0
    limit = max(5, 10 * longest)
    with pytest.raises(InterruptedError, match=f"no step in {limit:.0f} seconds"):
        progress._watch()
    assert clock == [ended]


def test_nothing_is_expected_after_the_training():
    progress = watch.Progress(limit=5)
    progress.on_epoch_begin(0)
    progress.on_train_batch_end(0)
    assert progress.since is not None
    progress.on_train_end()
    assert progress.since is None


def test_no_watch_goes_on_after_a_training_that_failed(monkeypatch, tmp_path):
    watched = []

    class Watch(watch.Progress):
        def on_train_batch_end(self, batch, logs=None):
            watched.append(self)
            raise OSError("the disk is gone")

    monkeypatch.setattr(fit, "Progress", Watch)
    with pytest.raises(OSError, match="the disk is gone"):
        small_train(tmp_path)
    (progress,) = watched
    assert progress.over and progress.since is None
    progress._watch()  # ends at once
