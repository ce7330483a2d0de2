"""The folder of a run: one training at a time, and what another one left put aside."""

import contextlib
import itertools
import os
import platform
import re
import shlex
import subprocess

import filelock

from capsnet.files import write_text
from capsnet.training.checkpoints import found


@contextlib.contextmanager
def only_run(save_dir):
    """Keep other trainings out of a directory, and remove what a dead one left there.

    The system gives the lock back when a process ends, however it ends; `.lock.by` names
    the last process that held it.

    Args:
        save_dir: str. The directory.

    Raises:
        OSError: if another process trains there; the message has its number.
    """
    lock = filelock.FileLock(os.path.join(save_dir, ".lock"))
    holder = os.path.join(save_dir, ".lock.by")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError), open(holder) as file:
            who = f"process {file.read()}"
        raise OSError(
            f"--save_dir {save_dir}: {who} trains there; wait for it, or choose "
            "another directory"
        ) from None
    try:
        write_text(holder, f"{os.getpid()} on {platform.node()}")
        for name in os.listdir(save_dir):
            if _HALF_WRITTEN.fullmatch(name):
                os.remove(os.path.join(save_dir, name))
        yield
    finally:
        lock.release()


_HALF_WRITTEN = re.compile(
    r"(checkpoint-\d+|best|trained_model|interrupted_model|log|)\.\d+\.tmp\..+"
)
"""Temporary names of the files that a training writes, see `whole_file`."""


def set_aside(save_dir):
    """Move what another run left to a folder of its own, so that a new run begins.

    The folder is `run-1` in `save_dir`, or the first such number that is free;
    `--resume` goes on with the run there. Files that no run writes stay. Says what went
    where, and how to get back what git tracks.

    Args:
        save_dir: str. The directory.
    """
    names = sorted(filter(_OF_A_RUN.fullmatch, os.listdir(save_dir)))
    if not names:
        return
    folders = (os.path.join(save_dir, f"run-{n}") for n in itertools.count(1))
    folder = next(path for path in folders if not os.path.lexists(path))
    os.mkdir(folder)
    for name in names:
        os.replace(os.path.join(save_dir, name), os.path.join(folder, name))
    print(f"What another run left in {save_dir} is now in {folder}: {', '.join(names)}")
    if found(folder):
        print(f"--resume --save_dir {folder}, with that run's options, goes on with it")
    tracked = _tracked_by_git(save_dir, names)
    if tracked:
        command = shlex.join(["git", "-C", save_dir, "restore", "--", *tracked])
        print(
            "git has copies of some of them. This brings those back, and what this run "
            f"writes under their names is lost then:\n{command}"
        )


_OF_A_RUN = re.compile(
    r"checkpoint-\d+\.(json|weights\.h5)|log\.(csv|png)|tensorboard-logs|"
    r"(best\.weights|trained_model|interrupted_model)\.h5|trained_model\.json|"
    r"(real_and_recon|confusion|mistakes|dimensions|predictions)\.png|"
    r"(manipulate|routing)-\d+\.png|"
    r"(multimnist|pairs|affnist|affnist-digits)\.png|affnist-curves\.csv"
)
"""Names of what a run, and the test of what it trained, leave in their directory."""


def _tracked_by_git(folder, names):
    """The files by these names that git tracks; none where there is no git."""
    # A monitor of the file system is a program that the repository names.
    command = ["git", "-c", "core.fsmonitor=false", "-C", folder, "ls-files", "-z"]
    try:
        done = subprocess.run(
            [*command, "--", *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # not installed
        return []
    return done.stdout.split("\0")[:-1]
