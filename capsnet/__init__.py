"""What `capsulelayers.py` and `capsulenet.py` stand on; see `docs/design.md`."""
