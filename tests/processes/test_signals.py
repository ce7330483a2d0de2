"""Signals, as a process or a whole command line meets them."""

import signal
import subprocess
import sys

import pytest
from helpers import NETWORK, ROOT, SendsSignal, script_environment

import capsulenet
import main
import reproduce


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}, {ROOT + '/tests'!r}]\n"
        "import os, signal\nfrom capsnet.training import signals\n"
        "with signals.Interruption() as interruption:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=script_environment(KERAS_BACKEND="numpy"),  # starts at once
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "goes on\n")
    assert "once more stops at once" in done.stderr


@pytest.mark.parametrize("front", [capsulenet, main, reproduce])
def test_command_lines_take_over_signals(
    tmp_path, monkeypatch, data_file, with_callback, capfd, front, small_network
):
    monkeypatch.chdir(tmp_path)
    with_callback(SendsSignal(signal.SIGTERM, epoch=0, step=0))
    flags = {
        capsulenet: ["--batch_size", "20", "-r1"],
        main: list(map(str, NETWORK)),
        reproduce: ["--variants", "v1", "--csv", "table.csv"],
    }
    with pytest.raises(SystemExit) as stop:
        front.main(["--dataset", str(data_file), *flags[front]])
    assert stop.value.code == 143
    said = capfd.readouterr().err
    assert "Stopped by SIGTERM in epoch 1 after step 1\nThe weights of that" in said
    assert "no epoch was finished, --resume starts at epoch 0\n" in said
    (weights,) = tmp_path.rglob("interrupted_model.h5")
    assert str(weights.relative_to(tmp_path)) in said
