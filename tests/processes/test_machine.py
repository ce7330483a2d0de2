"""How memory is taken from the machine, in a process that has taken none yet."""

import sys

import pytest
from helpers import ROOT, run_python

FAULTS = f"""
import resource, sys; sys.path.insert(0, {ROOT!r})
import capsulenet
from keras import ops
capsulenet.set_allocator()
x = ops.ones((2**12, 2**12))  # 64 MB, 16,384 pages
for number in range(30):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = ops.convert_to_numpy(ops.sum(x + number))
print("faults:", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_a_step_frees_is_kept_for_the_next(tmp_path):
    printed = run_python(FAULTS, tmp_path)
    assert int(printed.split("faults: ")[1]) < 5 * 2**14  # where 20 arrays were made
