"""Curves of several networks on affNIST, in one picture.

    python benchmarks/affnist.py runs/*-affnist/affnist-curves.csv

Each run of `reproduce.py --dataset affnist` leaves such a table. Joins them to one,
`--output`, and draws it, `--picture`: which transformation breaks which network.
"""

import argparse
import os

import pandas as pd
from step import ROOT  # which also puts the repository on the path

from capsnet.bent import plot_curves


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    results = os.path.join(ROOT, "benchmarks/results")
    add("tables", nargs="+", help="affnist-curves.csv of runs")
    add("--output", default=os.path.join(results, "affnist_curves.csv"))
    add("--picture", default=os.path.join(ROOT, "docs/affnist.png"))
    args = parser.parse_args()
    table = pd.concat(map(pd.read_csv, args.tables))
    table.to_csv(args.output, index=False)
    plot_curves(table.to_dict("records"), args.picture)


if __name__ == "__main__":
    main()
