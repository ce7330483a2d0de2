"""The networks beside the paper's, and what all of them share."""

from capsnet.networks.efficient import EfficientCapsNet
from capsnet.networks.photo import PhotoCapsNet, residual_stem
from capsnet.networks.shared import SharedCapsNet
from capsnet.networks.trio import class_capsules, trio

OTHERS = {
    "photo": PhotoCapsNet,
    "efficient": EfficientCapsNet,
    "shared": SharedCapsNet,
}
"""What `--model` may be, beside the paper's network."""
