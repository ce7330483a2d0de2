import keras
import numpy as np
import pytest
from helpers import small_capsnet, small_data
from keras import ops

import capsulenet
from capsnet.inference import images_at_once
from capsnet.networks import PhotoCapsNet


def test_larger_images_are_predicted_in_smaller_batches():
    size = {"filters": 1, "dim_primary": 1, "decoder": False}
    networks = [capsulenet.CapsNet((side, side, 1), 3, 1, **size) for side in (28, 44)]
    small, large = (models[1] for models in networks)
    assert images_at_once(small) == 500
    assert images_at_once(large) == 500 * 36 // 14**2
    assert images_at_once(small_capsnet()[1]) == 500


def test_large_pictures_are_predicted_in_smaller_batches():
    for side, most in ((28, 500), (64, 500), (224, 40)):
        model = PhotoCapsNet((side, side, 3), 3, decoder=False)[1]
        assert images_at_once(model) == most


def test_tensors_are_images_too():
    model, images = small_capsnet()[1], small_data()[1][0]
    tensor = ops.convert_to_tensor(images)
    if keras.backend.backend() == "torch":
        tensor.requires_grad_()
    np.testing.assert_allclose(
        capsulenet.predict(model, tensor).lengths,
        capsulenet.predict(model, images).lengths,
        atol=1e-6,
    )


@pytest.mark.parametrize("given", ["two.png", ["two.png"], None, [object()]])
def test_what_is_no_array_of_numbers_is_refused_as_that(given):
    with pytest.raises(ValueError, match="must be an array of numbers, .*not names"):
        capsulenet.predict(small_capsnet()[1], given)


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: 2 * x - 1])
def test_images_that_its_decoder_can_not_draw_are_refused(change):
    images = small_data()[1][0]
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        capsulenet.predict(small_capsnet()[1], change(images))
    with pytest.raises(ValueError, match="images from 0 to 1.00000"):
        capsulenet.predict(small_capsnet()[1], images / images.max() * 1.000001)
    without = small_capsnet(decoder=False)[1]
    assert len(capsulenet.predict(without, change(images)).classes) == len(images)
