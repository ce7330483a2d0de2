"""What a process makes of the machine, which it has to say before it computes."""

import platform
import sys

import keras
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


KERNELS = f"""
import os, sys; sys.path.insert(0, {ROOT!r})
os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
from capsnet import command_line
command_line.begin_capsulenet()
from keras import ops
ones = ops.ones((1, 1, 3, 3)), ops.ones((2, 2, 1, 1))
print(float(ops.sum(ops.conv(*ones, data_format="channels_first"))))
"""


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or platform.machine() != "x86_64",
    reason="oneDNN in TensorFlow",
)
def test_the_command_line_begins_with_the_kernels_of_onednn(tmp_path):
    # Only they convolve images whose channels come first. By itself TensorFlow uses them
    # on some processors, and this can fail on others alone.
    assert run_python(KERNELS, tmp_path).split()[-1] == "16.0"
