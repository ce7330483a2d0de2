"""Seconds a training step and memory of each network and routing, side by side.

    python benchmarks/networks.py
    python benchmarks/networks.py --contestants capsnet efficient --rounds 10

All of them on MNIST's images in batches of 100, each a process of its own that takes
turns with the others, beside the textbook CapsNet: see `step.py`, whose flags these are.
Writes `results/networks.csv`, `.png` and `.md`.
"""

import os
import sys

import step

if __name__ == "__main__":
    output = os.path.join(step.ROOT, "benchmarks", "results", "networks.csv")
    who = ["--contestants", *step.NETWORKS, step.TEXTBOOK]
    step.main([*who, "--output", output, *sys.argv[1:]])
