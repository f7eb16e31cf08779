"""Offline algorithms, one a file: ways to run and differentiate a sequence besides `bptt`."""
