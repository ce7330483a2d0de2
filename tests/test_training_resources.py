import pytest
from helpers import small_capsnet

import capsulenet
from capsnet import machine


def test_describe_names_the_forms():
    line = capsulenet.describe(small_capsnet(conv="patches")[0])
    assert "conv1 patches, primarycap_conv2d patches" in line


def test_a_step_that_exceeds_the_machine_is_warned_of(monkeypatch):
    model = small_capsnet()[0]
    model.compile(loss="mse")
    sizes = [capsulenet.step_memory(model, batch) for batch in (10, 1000, 2000)]
    assert sizes[0] < sizes[1] and sizes[2] > 1.5 * sizes[1]
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**9)
    assert "Warning" not in capsulenet.describe(model, 10)
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    text = capsulenet.describe(model, 10)
    assert "--batch_size" in text and "parameters" in text


def test_weights_that_exceed_the_machine_are_refused(squares, monkeypatch, capsys):
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(SystemExit):
        capsulenet.main(["--dataset", squares])
    assert "images of 17 x 17 pixels need 0 GB" in capsys.readouterr().err
