"""What command lines find in the folder of a run: others, and disks that are full."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import NETWORK, ROOT, files_under, script_environment, small_train

import capsulenet
import main


def test_a_directory_in_use_is_refused_with_the_number_of_the_process(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}]\n"
        "from capsnet.training import folder\n"
        f"with folder.only_run({str(tmp_path)!r}):\n"
        "    print('has it', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        env=script_environment(KERAS_BACKEND="numpy"),  # starts at once
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(OSError, match=f"process {holder.pid} on .* trains there"):
            small_train(tmp_path)
        assert set(os.listdir(tmp_path)) == {".lock", ".lock.by"}
    finally:
        holder.kill()
        holder.communicate()
    small_train(tmp_path)  # a lock that a dead process left is taken over
    assert (tmp_path / ".lock.by").read_text().startswith(f"{os.getpid()} on ")


def test_three_runs_into_one_folder_leave_three_trained_models(
    tmp_path, monkeypatch, data_file
):
    monkeypatch.chdir(tmp_path)
    results, left = tmp_path / "results", []
    names = ("trained_model.h5", "best.weights.h5", "log.csv", "confusion.png")
    flags = ["--dataset", str(data_file), *map(str, NETWORK)]
    for seed in ("1", "2", "3"):
        main.main([*flags, "--use-reconstruction-loss", "no", "--seed", seed])
        left.append([(results / name).read_bytes() for name in names])
    folders = (results / "run-1", results / "run-2", results)
    assert left == [[(f / name).read_bytes() for name in names] for f in folders]
    assert len({trained for trained, *_ in left}) == 3


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_shipped_model_is_moved_and_git_s_way_back_is_told(
    tmp_path, monkeypatch, data_file, capsys, small_network
):
    listed = ["git", "-C", ROOT, "ls-files", "result"]  # not what a run left there
    listed = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    names = map(os.path.basename, listed.splitlines())
    monkeypatch.chdir(tmp_path)
    shipped = {name: f"shipped {name}".encode() for name in names}
    (tmp_path / "result").mkdir()
    for name, content in shipped.items():
        (tmp_path / "result" / name).write_bytes(content)
    subprocess.run("git init -q && git add result", shell=True, check=True)
    (tmp_path / "result" / "mnist.csv").write_bytes(b"another row")
    shipped["mnist.csv"] = b"another row"
    capsulenet.main(["--dataset", str(data_file), "--epochs", "1", "-r1"])
    told = capsys.readouterr().out.splitlines()
    tables = {name for name in shipped if name.endswith(".csv")} - {"log.csv"}
    stay = {"README.md", "multimnist.h5", *tables}
    after = files_under(tmp_path / "result")
    for name, content in shipped.items():
        assert after[name if name in stay else f"run-1/{name}"] == content
    (line,) = [line for line in told if " is now in ./result/run-1: " in line]
    assert "trained_model.h5" in line
    (command,) = [line for line in told if line.startswith("git -C ./result restore")]
    subprocess.run(command, shell=True, check=True)
    restored = files_under(tmp_path / "result")
    assert {name: restored[name] for name in shipped} == shipped


def small_main(data_file, cwd, *wrapper):
    """Train by `main.py`, perhaps wrapped in other programs."""
    command = [sys.executable, f"{ROOT}/main.py", "--dataset", data_file, *NETWORK]
    return subprocess.run(
        [*wrapper, *map(str, command)],
        cwd=cwd,
        env=script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(done):
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def on_a_disk(options):
    """The command that runs another on a file system of its own, or skip."""
    mount = f'mount -t tmpfs -o {options} none disk && cd disk && exec "$@"'
    for wrapper in (["unshare", "-m"], ["unshare", "-rm"]):
        command = [*wrapper, "sh", "-c", mount, "sh"]
        try:
            os.makedirs("disk", exist_ok=True)
            subprocess.run([*command, "true"], check=True, capture_output=True)
            return command
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no file system can be mounted here")


@pytest.mark.parametrize(
    "options, message",
    [
        ("size=5M", "No space left on device: no epoch was finished, --resume starts"),
        ("ro", "--save_dir ./results: can't be written (Read-only file system)"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(
    tmp_path, monkeypatch, data_file, options, message
):
    monkeypatch.chdir(tmp_path)
    done = small_main(data_file, tmp_path, *on_a_disk(options))
    assert done.returncode == 2
    assert message in last_line(done)
