"""A fuzzer: random compositions of what the library has, against naive loops in NumPy."""
