"""The command `python -m jax_bptt.testing`."""

from jax_bptt.testing.command import main

if __name__ == "__main__":
    raise SystemExit(main())
