r"""CapsNet on several devices or hosts: `capsulenet.py` with a few flags more.

    python capsulenet-multi-gpu.py --gpus 2
    python capsulenet-multi-gpu.py --gpus 2 --device cpu        # a rehearsal
    KERAS_BACKEND=jax python capsulenet-multi-gpu.py --gpus 8 \
        --coordinator first-host:1234 --num_hosts 2 --host_id 0

References:
    Guo. CapsNet-Keras. https://github.com/XifengGuo/CapsNet-Keras, whose script of this
        name has the same flags and defaults.
"""

import contextlib
import os
import sys

from capsnet import command_line


def build_parser():
    """Return the parser: the flags of `capsulenet.py`, and some more."""
    parser = command_line.build_parser()
    parser.description = (
        "CapsNet on several devices or hosts. --batch_size is that of all devices "
        "together, and must divide by their number."
    )
    parser.set_defaults(batch_size=300)
    add = parser.add_argument
    add("--gpus", default=2, type=int, help="devices to use, of each host")
    add(
        "--device",
        default="gpu",
        choices=("gpu", "cpu"),
        help="cpu rehearses the same on that many logical devices of the CPU",
    )
    add("--coordinator", metavar="HOST:PORT", help="address of host 0, for every host")
    add("--num_hosts", type=int, help="number of hosts; JAX asks Slurm where absent")
    add("--host_id", type=int, help="number of this host, from 0")
    return parser


if __name__ == "__main__":
    command_line.begin(build_parser().parse_args, command_line.check_at_once)

import keras

import capsulenet
from capsnet.errors import HostLost
from capsnet.options import are_held_out
from capsnet.training import devices


def start(args):
    """Join the other hosts, if there are any, and check that the devices are there.

    Raises:
        OSError: if the hosts can't be joined.
        ValueError: if an option has a value that it can't have.
    """
    capsulenet.check_options(args)
    if args.deterministic:
        devices.make_deterministic()
    if args.gpus < 1:
        raise ValueError(f"--gpus {args.gpus}: must be at least 1")
    backend = keras.backend.backend()
    if backend == "torch":
        raise ValueError(
            "PyTorch: trains on one device here; KERAS_BACKEND=tensorflow and "
            "KERAS_BACKEND=jax take several"
        )
    if args.device == "cpu":
        devices.use_cpu(args.gpus)
    named = (args.coordinator, args.num_hosts, args.host_id)
    managed = any(
        int(os.environ.get(name, "1")) > 1
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    if managed or any(value is not None for value in named):
        if backend != "jax":
            raise ValueError(
                "several hosts: Keras 3 does not train with TensorFlow's strategy for "
                "them; KERAS_BACKEND=jax does, with the same flags"
            )
        if any(value is not None for value in named):
            check_hosts(*named)
        devices.join_hosts(*named)
    found = devices.count(args.device)
    if found < args.gpus:
        kind = "GPU" if args.device == "gpu" else "CPU device"
        raise ValueError(f"--gpus {args.gpus}: found {found} {kind}s")
    number = args.gpus * devices.host()[1]
    if "batch_size" in args.given and args.batch_size % number:
        raise ValueError(
            f"--batch_size {args.batch_size}: must divide by the {number} devices"
        )


def check_hosts(coordinator, num_hosts, host_id):
    """Raise a `ValueError` unless the three flags are given and fit together."""
    if None in (coordinator, num_hosts, host_id):
        raise ValueError("--coordinator, --num_hosts and --host_id go together")
    name, _, port = coordinator.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator {coordinator}: must be HOST:PORT")
    if num_hosts < 1:
        raise ValueError(f"--num_hosts {num_hosts}: must be at least 1")
    if not 0 <= host_id < num_hosts:
        raise ValueError(f"--host_id {host_id}: the hosts are 0 to {num_hosts - 1}")


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = build_parser().parse_args(argv)
    capsulenet.set_allocator()
    if args.testing or args.predict:  # one device is enough
        capsulenet.run(args, build_parser())
        return
    with capsulenet.one_line_errors():
        start(args)
    host, hosts = devices.host()
    with open(os.devnull, "w") as nowhere:  # the first host speaks for all
        speak = contextlib.redirect_stdout(nowhere if host else sys.stdout)
        try:
            with speak, devices.data_parallel(args.gpus, args.device):
                print(f"{hosts} hosts with {args.gpus} devices ({args.device}) each")
                capsulenet.run(args, build_parser())
        except HostLost as error:
            devices.end(error, 1)
        except SystemExit as stop:  # of bad input, which was said
            if hosts > 1:
                devices.leave(stop.code)  # not waiting, so that the others hear of it
            raise
    devices.leave_hosts()
    tested = args.gpus * hosts == 1 and are_held_out(args)  # as one device does
    if host == 0 and not args.pause_after and not tested:
        args.testing, args.resume = True, False
        args.seed = args.seed or 0  # the others, who would draw one too, are gone
        args.weights = os.path.join(args.save_dir, "trained_model.h5")
        capsulenet.run(args)


if __name__ == "__main__":
    main()
