"""The networks beside the paper's, and what all of them share."""

from capsnet.networks.photo import PhotoCapsNet, residual_stem
from capsnet.networks.trio import trio

__all__ = ["PhotoCapsNet", "residual_stem", "trio"]
