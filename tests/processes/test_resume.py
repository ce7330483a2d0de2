"""Command lines that go on with `--resume`."""

import pytest
from helpers import NETWORK

import capsulenet
import main


def test_a_run_goes_on_with_the_weights_that_it_started_from(
    tmp_path, data_file, capsys, small_network
):
    for name in ("a", "b"):
        model = small_network((17, 17, 1), 2, 1)[0]
        capsulenet.save_weights(model, str(tmp_path / f"{name}.h5"))
    save_dir, first, other = (str(tmp_path / name) for name in ("run", "a.h5", "b.h5"))
    command = ["--dataset", str(data_file), "--save_dir", save_dir, "--resume"]
    command += ["--epochs", "1", "--routings", "1", "-w"]
    capsulenet.main([*command, first])
    log = (tmp_path / "run" / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        capsulenet.main([*command, other])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--weights {other}: the run in {save_dir} started from {first};" in line
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    for same in (first, other, first):
        capsulenet.main([*command, same])
        said = capsys.readouterr().out
        assert "Resumed after epoch 1 of 1" in said
        assert f"no longer those of {same}" in said
        (tmp_path / "a.h5").unlink(missing_ok=True)  # or moved aside by the run itself
    assert (tmp_path / "run" / "log.csv").read_bytes() == log
    (tmp_path / "a.h5").write_bytes(b"something else")
    with pytest.raises(SystemExit):
        capsulenet.main([*command, first])
    assert f"started from {first} as it was then" in capsys.readouterr().err


def test_capsulenet_goes_on_and_names_other_options(
    tmp_path, data_file, capsys, small_network
):
    save_dir = tmp_path / "run"
    command = ["--dataset", str(data_file), "--save_dir", str(save_dir), "--resume"]
    command += ["--epochs", "1", "--routings", "1"]
    capsulenet.main(command)
    first = (save_dir / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        capsulenet.main([*command, "--lr", "0.5", "--routings", "2"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--lr 0.5 (there: 0.001), --routings 2 (there: 1)" in said
    capsulenet.main(command)
    assert "Resumed after epoch 1 of 1" in capsys.readouterr().out
    assert (save_dir / "log.csv").read_bytes() == first


def test_main_goes_on_and_names_other_options(tmp_path, monkeypatch, data_file, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--dataset", str(data_file), *map(str, NETWORK), "--resume"]
    main.main(command)
    first = (tmp_path / "results" / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main.main([*command, "--lr", "0.5", "--num-conv-out-channel", "8"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--lr 0.5 (there: 0.01)" in said
    assert "--num-conv-out-channel 8 (there: 4)" in said
    main.main(command)
    assert "Resumed after epoch 1 of 1" in capsys.readouterr().out
    assert (tmp_path / "results" / "log.csv").read_bytes() == first
