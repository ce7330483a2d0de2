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


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="it is refused there")
def test_one_device_reads_the_test_images_once(
    script, digits, small_network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        script.devices, "use_cpu", lambda number: None
    )  # there are some
    flags = ["--gpus=1", "--device=cpu", "--dataset", digits, "--until=0.01"]
    script.main([*flags, "--epochs=1", "--batch_size=30", "--save_dir=out"])
    assert capsys.readouterr().out.count("Test acc") == 1
