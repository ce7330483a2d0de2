"""Reads damaged copies of a file; a process of its own, since reading may not end.

    python tests/fuzz.py KIND FILE FIRST

For each mutation from number FIRST on it prints `begin <number>`, then `refused`,
`same` or `other`: whether what was read is what the whole file gives; at the end the
most memory that it had. The system ends it where a file takes more than `SECONDS`, or
one of weights more than one of processor time.
"""

import os
import random
import resource
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The reader by itself: its package imports Keras, which takes seconds at each start.
sys.path[:0] = [ROOT, os.path.join(ROOT, "capsnet", "weights")]

MUTATIONS = 500
SECONDS = 10


def mutate(content, draw):
    """Damage a file in one of six ways."""
    content = bytearray(content)
    size = len(content)
    kind = draw.randrange(6)
    place = draw.randrange(size)
    if kind == 0:
        return bytes(content[:place])
    if kind == 1:  # single bits
        for _ in range(draw.choice([1, 2, 8, 64])):
            content[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == 2:  # bytes of the beginning, where the structure is
        for _ in range(draw.choice([1, 4])):
            content[draw.randrange(min(size, 4096))] = draw.choice([0, 1, 128, 255])
    elif kind == 3:
        content[place : place + 64] = draw.randbytes(draw.randrange(1, 128))
    elif kind == 4:  # a part of it, at another place
        other, length = draw.randrange(size), draw.randrange(1, 512)
        content[place : place + length] = content[other : other + length]
    else:  # sizes and addresses
        number = draw.choice([0, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
        content[place : place + 8] = number.to_bytes(8, "little")
    return bytes(content)


def read_weights(path):
    """Read as `capsnet.weights.reader` does; whatever it raises is refused by its `main`."""
    import reader

    try:
        about, weights = reader.read(path)
    except Exception as error:
        raise ValueError(str(error)) from error
    return reader.checksum(str(sorted(about)), weights)


def read_npz(path):
    """Read a data set."""
    import numpy as np

    from capsnet import data as datasets

    data = datasets.load_npz(path)
    assert all(np.isfinite(x).all() and x.ndim == 4 for x, _ in data[:2])
    return b"".join(a.tobytes() for part in data[:2] for a in part), data.class_names


def read_png(path):
    """Read a picture."""
    from capsnet import data as datasets

    picture = datasets.read_picture(path)
    assert datasets.fit_picture(picture, (28, 28, 1), True).shape == (28, 28, 1)
    return picture.mode, picture.size, picture.tobytes()


def main(kind, source, first):
    """Read the mutations from number `first` on."""
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))  # of addresses, not memory
    read = {"npz": read_npz, "png": read_png}.get(kind, read_weights)
    with open(source, "rb") as file:
        content = file.read()
    expected = read(source)
    path = f"{source}.damaged"
    for number in range(first, MUTATIONS):
        with open(path, "wb") as file:
            file.write(mutate(content, random.Random(number)))
        print("begin", number, flush=True)
        signal.alarm(SECONDS)
        if read is read_weights:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.3)
        try:
            print("same" if read(path) == expected else "other")
        except (ValueError, OSError):
            print("refused")
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    print("memory", 1024 * int(line.split()[1]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
