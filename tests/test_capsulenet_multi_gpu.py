import contextlib
import importlib.util
import os

import keras
import pytest
from helpers import ROOT, SCRIPT


@pytest.fixture(scope="module")
def script():
    """The script as a module, which its dashes keep from being imported."""
    spec = importlib.util.spec_from_file_location("script", os.path.join(ROOT, SCRIPT))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "backend, flags, message",
    [
        ("torch", "", "KERAS_BACKEND=tensorflow and KERAS_BACKEND=jax"),
        ("tensorflow", "--num_hosts 2", "KERAS_BACKEND=jax does"),
    ],
)
def test_a_backend_that_can_not_is_one_clear_line(
    script, backend, flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and os.listdir(tmp_path) == []


def test_zero_devices_are_refused(script):
    with pytest.raises(ValueError, match="--gpus 0: must be at least 1"):
        script.start(script.build_parser().parse_args(["--gpus", "0"]))


@pytest.mark.parametrize(
    "hosts, message",
    [
        (("here", 2, 0), "--coordinator here: must be HOST:PORT"),
        (("here:port", 2, 0), "--coordinator here:port: must be HOST:PORT"),
        (("here:1234", 2, None), "go together"),
        (("here:1234", 0, 0), "--num_hosts 0: must be at least 1"),
        (("here:1234", 2, 2), "--host_id 2: the hosts are 0 to 1"),
        (("here:1234", 2, -1), "--host_id -1: the hosts are 0 to 1"),
    ],
)
def test_hosts_that_can_not_be_are_refused(script, hosts, message):
    with pytest.raises(ValueError, match=message):
        script.check_hosts(*hosts)


def test_the_flags_are_those_of_capsnet_keras(script):
    defaults = vars(script.build_parser().parse_args([]))
    assert {"batch_size": 300, "gpus": 2, "epochs": 50, "lr": 0.001}.items() <= (
        defaults.items()
    )
    assert set(vars(script.capsulenet.build_parser().parse_args([]))) < set(defaults)


@pytest.mark.parametrize(
    "flags, runs", [([], 2), (["--until=0.9"], 1), (["--dataset=affnist"], 1)]
)
def test_what_a_run_has_tested_itself_is_not_tested_again(
    script, flags, runs, monkeypatch
):
    seen = []
    monkeypatch.setattr(script, "start", lambda args: None)  # on one device
    nothing = lambda *args: contextlib.nullcontext()
    monkeypatch.setattr(script.devices, "data_parallel", nothing)
    monkeypatch.setattr(script.capsulenet, "run", lambda *args: seen.append(args))
    script.main(["--gpus=1", *flags])
    assert len(seen) == runs
    # Where there were several hosts, who draws a seed waits for those that are gone.
    assert all(args.seed is not None for args, *_ in seen[1:])
