"""Files that are whole or not there at all."""

import contextlib
import hashlib
import os
import stat
import tempfile


@contextlib.contextmanager
def whole_file(path):
    """Give a temporary name; what is written there becomes `path`, whole or not at all.

    The name lies in the same folder, holds `.<process id>.tmp`, and ends as `path`
    does.

    Args:
        path: str. The file; one that is there is replaced when the new one is whole.
    """
    folder, name = os.path.split(path)
    stem, dot, ending = name.partition(".")
    temporary = os.path.join(folder, f"{stem}.{os.getpid()}.tmp{dot}{ending}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # to the disk, before it has its name
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system can do that
            directory = os.open(folder or ".", os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def make_save_dir(path):
    """Make the directory and try that a file can be written there.

    The file has no name where the system can do that, so that a death leaves nothing.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"--save_dir {path}: can't be written ({error.strerror})"
        ) from None


def write_text(path, text):
    """Write a text file whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w", newline="") as file:
        file.write(text)


def sha256(path):
    """Return the sha256 of a file, in hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path):
    """Open a file to read its bytes; opening or reading what is none may never end.

    Raises:
        OSError: if it can't be opened.
        ValueError: if it is neither a file nor a folder.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: not a file")
    return open(path, "rb")


def keras_home():
    """Return where Keras keeps what it downloads: under /tmp where it can't write."""
    home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
    there = home if os.path.isdir(home) else os.path.dirname(home)
    return home if os.access(there, os.W_OK) else "/tmp/.keras"
