"""The networks beside the paper's, and what all of them share."""

from capsnet.networks.efficient import EfficientCapsNet
from capsnet.networks.photo import PhotoCapsNet, residual_stem
from capsnet.networks.trio import class_capsules, trio

__all__ = [
    "EfficientCapsNet",
    "PhotoCapsNet",
    "class_capsules",
    "residual_stem",
    "trio",
]
