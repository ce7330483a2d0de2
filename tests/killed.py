"""Runs a script that kills itself, again and again, by progress and not by the clock.

    python tests/killed.py SCRIPT [FLAGS]

For each number on the standard input it forks, which saves the imports, runs
`SCRIPT FLAGS`, and prints the exit status, negative for a signal. The run is killed, as
by `kill -9`, before its operation of that number on a file in the working directory; 0
is for never. What it prints goes to the standard error. Networks are small, as by the
fixture `small_network`.
"""

import functools
import os
import runpy
import signal
import sys

OPERATIONS = ("open", "os.rename", "os.remove")


def kill_before(number):
    """Kill this process before an operation on a file here, counted from 1."""
    here, done = os.getcwd() + os.sep, 0

    def count(event, args):
        nonlocal done
        if event in OPERATIONS and isinstance(args[0], (str, os.PathLike)):
            done += os.path.abspath(args[0]).startswith(here)
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

    if number:
        sys.addaudithook(count)


def main(script, *flags):
    """Run the script once for each number on the standard input."""
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(script))
    import reproduce  # and what the scripts import, but nothing is computed

    networks = reproduce.capsulenet.NETWORKS
    networks["capsnet"] = functools.partial(
        networks["capsnet"], filters=16, n_channels=4
    )
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.dup2(2, 1)
            kill_before(int(line))
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
