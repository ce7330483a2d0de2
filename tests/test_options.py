import os

import pytest
from helpers import options, small_capsnet, small_data

from capsulenet import train


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("epochs", -1, "--epochs -1"),
        ("batch_size", 0, "--batch_size 0"),
        ("lr", -0.1, "--lr -0.1"),
        ("lr", float("nan"), "--lr nan"),
        ("shift_fraction", 1.5, "--shift_fraction 1.5"),
        ("rotation", 181.0, "--rotation 181.0: must be 0 to 180 degrees"),
        ("zoom", 1.0, "--zoom 1.0: must be at least 0 and below 1"),
        ("lam_recon", -1, "--lam_recon -1"),
    ],
)
def test_options_that_can_not_be_are_refused(tmp_path, option, value, message):
    args = options(tmp_path / "new", **{option: value})
    with pytest.raises(ValueError, match=message):
        train(small_capsnet()[0], small_data(), args)
    assert not os.path.exists(tmp_path / "new")
