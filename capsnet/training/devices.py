"""Training on several devices and hosts, by the engines that Keras drives.

TensorFlow takes `tf.distribute.MirroredStrategy`, the devices of one host; JAX takes
`keras.distribution.DataParallel`, also over several hosts by its own runtime; PyTorch
takes one device. Every function here is specific to the backend.
"""

import contextlib
import os
import sys
import threading

import keras
import numpy as np

from capsnet import numerics

PATIENCE = 40
"""Seconds that hosts wait for each other."""


def make_deterministic():
    """Have the backend compute the same bits each time, on the same devices.

    Specific to the backend. With JAX on a GPU it must come before anything is computed.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        more = "--xla_gpu_deterministic_ops=true"
        if more not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {more}"


def use_cpu(count):
    """Stay on the CPU, as `count` devices, to rehearse what is meant for GPUs.

    Must come before anything is computed.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, logical)
    elif keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)


def end(message, code):
    """Say why, and end the process at once: JAX would wait for the other hosts."""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    leave(code)


def leave(code):
    """End the process at once, when what it has said is written."""
    for said in (sys.__stdout__, sys.stderr):
        with contextlib.suppress(OSError):
            said.flush()
    os._exit(code)


def join_hosts(coordinator, num_hosts, host_id):
    """Join the other hosts of a JAX run; must come before anything is computed.

    Ends the process with exit code 2 if they have not come together in `PATIENCE`
    seconds, since JAX would abort it.

    Args:
        coordinator: str. `HOST:PORT` of host 0. With None for all three, JAX asks
            Slurm, Open MPI and others that it knows.
        num_hosts: int.
        host_id: int, from 0.

    Raises:
        ConnectionError: if JAX says that they can't be joined.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if host_id is not None:
        print(
            f"Host {host_id} waits for the {num_hosts} hosts at {coordinator}; each "
            "needs a --host_id of its own",
            flush=True,
        )
    where = f"host {host_id} of {num_hosts}, coordinator {coordinator}: the hosts"
    late = f"{where} did not come together in {PATIENCE} seconds"
    timer = threading.Timer(PATIENCE, end, (late, 2))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_hosts,
            host_id,
            initialization_timeout=3 * PATIENCE,
            heartbeat_timeout_seconds=3 * PATIENCE,
        )
    except Exception as error:  # whatever the network makes JAX raise
        raise ConnectionError(f"{where} can't be joined: {error}") from error
    finally:
        timer.cancel()


def leave_hosts():
    """Part from the other hosts, so that this one can go on by itself."""
    if host()[1] > 1:
        import jax

        jax.distributed.shutdown()


def host():
    """Return `(number of this host, number of hosts)`; host 0 writes the files."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def on_all_hosts(number):
    """Return what each host calls this with, a list of int of 32 bits."""
    if host()[1] == 1:
        return [number]
    from jax.experimental import multihost_utils

    gathered = multihost_utils.process_allgather(np.array([number], "int32"))
    return [int(n) for n in gathered.ravel()]


def draw_seed():
    """Return a seed that all hosts have in common."""
    return on_all_hosts(int(np.random.SeedSequence().entropy % 2**31))[0]


def count(kind="gpu"):
    """Return how many devices of a kind, `"cpu"` or `"gpu"`, this host has."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_logical_devices(kind.upper()))
    if backend == "jax":
        import jax

        try:
            return len(jax.local_devices(backend=kind))
        except RuntimeError:  # none of this kind
            return 0
    import torch

    return torch.cuda.device_count() if kind == "gpu" else 1


def data_parallel(number, kind="gpu"):
    """Return the context in which a model is built and trained on several devices.

    Args:
        number: int. Devices of each host.
        kind: `"cpu"` or `"gpu"`. Defaults to `"gpu"`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        names = [f"{kind.upper()}:{i}" for i in range(number)]
        return tf.distribute.MirroredStrategy(names).scope()
    import jax

    names = [
        f"{device.platform}:{device.id}"
        for host in range(jax.process_count())
        for device in jax.local_devices(host, backend=kind)[:number]
    ]
    # Every host brings its own share of a batch.
    return keras.distribution.DataParallel(
        devices=names, auto_shard_dataset=False
    ).scope()


@contextlib.contextmanager
def alone():
    """A context in which Keras makes variables on this host alone.

    It makes some when it saves a model, which one host does and the others do not.
    """
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def replicas():
    """Return how many devices of all hosts a batch is shared out to."""
    return max(numerics.mirrors(), numerics.replicas())
