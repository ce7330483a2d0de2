import re

import pytest
from helpers import small_capsnet

import capsulenet
from capsnet import command_line, machine
from capsnet.networks import PhotoCapsNet
from capsnet.training import resources


def test_describe_names_the_forms():
    line = resources.describe(small_capsnet(conv="patches")[0])
    assert "conv1 patches, primarycap_conv2d patches" in line


def test_a_step_that_exceeds_the_machine_is_refused_with_what_fits(monkeypatch):
    model = small_capsnet()[0]
    sizes = [resources.step_memory(model, batch) for batch in (10, 1000, 2000)]
    assert sizes[0] < sizes[1] and sizes[2] > 1.5 * sizes[1]
    monkeypatch.setattr(machine, "machine_memory", lambda: sizes[1])
    resources.check_step(model, 1000)
    with pytest.raises(ValueError, match="--batch_size 2000: .*--model photo") as error:
        resources.check_step(model, 2000)
    fits = int(re.search(r"--batch_size (\d+) fits", str(error.value))[1])
    assert 900 < fits <= 1000  # blocks of routing make it uneven
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(ValueError, match="not even one image fits"):
        resources.check_step(model, 2000)


def test_a_picture_s_stem_counts_towards_the_memory():
    sizes = [PhotoCapsNet((side, side, 3), 3)[0] for side in (56, 64)]
    small, large = (resources.step_memory(model, 100) for model in sizes)
    assert 1.1 * small < large < 2 * small
    assert 0.5e9 < large < 4e9


def test_memory_that_runs_out_all_the_same_is_one_line(capsys):
    class ResourceExhaustedError(Exception):
        pass

    for error in (MemoryError("x"), ResourceExhaustedError("OOM when\nallocating")):
        with pytest.raises(SystemExit) as end, command_line.one_line_errors():
            raise error
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "not enough memory" in said
        assert "--batch_size" in said
    with pytest.raises(RuntimeError), command_line.one_line_errors():
        raise RuntimeError("something else")


def test_weights_that_exceed_the_machine_are_refused(squares, monkeypatch, capsys):
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(SystemExit):
        capsulenet.main(["--dataset", squares])
    assert "images of 17 x 17 pixels need 0 GB" in capsys.readouterr().err
