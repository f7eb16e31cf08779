"""Parts of `bench.py`: the rivals, the measurements and the report."""
