"""The benchmarks measure what the command line trains."""

import os
import sys

import numpy as np
import pytest
from helpers import ROOT

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))
import step


@pytest.mark.parametrize(
    ("name", "layer", "routing"),
    [
        ("efficient", "primarycap_depthwise", "attention"),
        ("capsnet-max_min", "primarycap_conv2d", "max_min"),
    ],
)
def test_step_builds_the_networks_of_the_command_line(name, layer, routing):
    labels = np.eye(10, dtype="float32")
    model = step.network(name, labels, batch_size=100, steps=5)
    assert model.get_layer(layer).built
    assert model.get_layer("digitcaps").get_config()["routing"] == routing
    assert model.optimizer is not None
