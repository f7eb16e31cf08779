"""The command `bench.py compile-for`: what the compilers for a device make of the library."""
