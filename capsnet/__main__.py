"""`python -m capsnet`, and the command `capsulenet` of an installation."""

from capsnet import command_line


def main():
    """Run the command line of `capsulenet.py`."""
    command_line.begin_capsulenet()
    import capsulenet

    capsulenet.main()


if __name__ == "__main__":
    main()
