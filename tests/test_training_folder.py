import pytest
from helpers import classifier, files_under, options, read_log, small_data, small_train

from capsnet.training import checkpoints
from capsulenet import train

OF_A_RUN = (
    *("log.csv", "log.png", "trained_model.h5", "best.weights.h5"),
    *("checkpoint-0001.json", "checkpoint-0001.weights.h5"),
    *("interrupted_model.h5", "real_and_recon.png", "confusion.png", "mistakes.png"),
    "trained_model.json",
    *("manipulate-0.png", "manipulate-12.png", "dimensions.png", "predictions.png"),
    *("routing-0.png", "multimnist.png", "pairs.png"),
    *("affnist.png", "affnist-digits.png", "affnist-curves.csv"),
)
NOT_OF_A_RUN = (
    *("README.md", "mnist.csv", "multimnist.csv", "affnist.csv"),
    *("multimnist.h5", "multimnist_held_out.csv"),
    *("my-log.csv", "mine.h5", "manipulate-me.png"),
)


def test_a_run_from_the_start_moves_every_file_of_the_one_before(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "tensorboard-logs").mkdir()
    (tmp_path / "run-2").mkdir()  # somebody's
    foreign = {*NOT_OF_A_RUN, "run-2/trained_model.h5"}
    for name in {*OF_A_RUN, *foreign, "tensorboard-logs/events"}:
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match="--lr -1"):
        small_train(tmp_path, lr=-1)
    assert not (tmp_path / "run-1").exists()  # a run that is refused has not begun
    monkeypatch.setenv("PATH", "")  # as if git were not installed
    expected = {}
    for number in (1, 3):
        before = files_under(tmp_path)
        small_train(tmp_path)
        moved = {n: d for n, d in before.items() if n not in foreign | {*expected}}
        assert number > 1 or moved.keys() >= {*OF_A_RUN, "tensorboard-logs/events"}
        expected |= {f"run-{number}/{name}": data for name, data in moved.items()}
        expected |= {name: before[name] for name in foreign}
        after = files_under(tmp_path)
        assert {name: after.get(name) for name in expected} == expected
        said = capsys.readouterr().out
        assert f"is now in {tmp_path}/run-{number}: " in said and "git " not in said
        assert all(name in said for name in OF_A_RUN if name in moved)


def test_a_run_from_the_start_does_not_go_on_with_the_one_before(tmp_path):
    small_train(tmp_path, epochs=3, pause_after=2)
    before = files_under(tmp_path)
    model = classifier()
    model.fit = None  # a run that fails before its first epoch has ended
    with pytest.raises(TypeError):
        train(model, small_data(), options(tmp_path, seed=0, epochs=3))
    assert checkpoints.last_checkpoint(tmp_path) is None
    former = tmp_path / "run-1"
    assert files_under(former) == before
    small_train(tmp_path, epochs=1)
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1
    small_train(former, epochs=3, resume=True)
    assert [row["epoch"] for row in read_log(former)] == [0, 1, 2]


def test_what_a_dead_run_left_half_written_is_removed(tmp_path):
    half = tmp_path / "checkpoint-0001.99999.tmp.weights.h5"
    half.write_bytes(b"half")
    foreign = tmp_path / "my.99999.tmp.txt"
    foreign.write_bytes(b"not ours")
    small_train(tmp_path)
    assert not half.exists() and foreign.exists()
