"""Data sets, from files to batches."""

from capsnet.data.affine import Bent, bent
from capsnet.data.arrays import Data, is_class_name, load_npz
from capsnet.data.batches import TrainingBatches, ValidationBatches, shows_several
from capsnet.data.changes import inverse_transforms, shift_images, transform_images
from capsnet.data.folders import load_folder, pictures_under
from capsnet.data.images import (
    are_like_mnist,
    check_channels,
    fit_and_tell,
    fit_picture,
    read_picture,
)
from capsnet.data.pairs import Pairs, pad, paired, shown, shown_class, unpad
from capsnet.data.sets import hold_out, load, load_for, load_mnist
