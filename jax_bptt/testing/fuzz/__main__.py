"""The command `python -m jax_bptt.testing.fuzz`."""

from jax_bptt.testing.fuzz.run import main

if __name__ == "__main__":
    raise SystemExit(main())
