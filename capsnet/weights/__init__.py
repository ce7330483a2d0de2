"""Files of weights: writing them, and reading those of strangers."""

from capsnet.weights.files import load_weights, read, save_weights, set_weights
