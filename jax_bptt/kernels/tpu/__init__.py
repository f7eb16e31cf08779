"""Kernels for a TPU, by Pallas, and their parts."""
