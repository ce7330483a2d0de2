"""Damaged files, read by processes of their own since reading may not end."""

import collections
import subprocess
import sys
import time

import fuzz
import pytest
from helpers import KINDS, script_environment

from capsnet import weights


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_whole(whole, kind):
    outcomes, memory = collections.Counter(), 0
    first = 0
    while first < fuzz.MUTATIONS:
        done = subprocess.run(
            [sys.executable, fuzz.__file__, kind, whole[kind], str(first)],
            env=script_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        outcomes.update(line[0] for line in lines)
        if done.returncode == 0:
            memory = int(lines[-1][1])
            break
        # HDF5's library hung or crashed: that is what the process of its own is for.
        assert done.returncode < 0 and kind not in ("npz", "png"), done.stderr
        start = time.monotonic()
        try:
            weights.read(f"{whole[kind]}.damaged")
            outcomes["slow"] += 1
        except ValueError:
            outcomes["refused by its limits"] += 1
        assert time.monotonic() - start < 6 * fuzz.SECONDS  # of a busy machine
        first = int(lines[-1][1]) + 1
    print(kind, dict(outcomes), f"{memory / 1e6:.0f} MB")
    counted = ("refused", "same", "other", "slow", "refused by its limits")
    read = sum(outcomes[outcome] for outcome in counted)
    assert read == outcomes["begin"] == fuzz.MUTATIONS >= 500
    assert outcomes["refused"] > fuzz.MUTATIONS / 5
    assert memory < 2e9
    if kind == "h5":  # it has a checksum
        assert outcomes["other"] == 0
