"""Cells, one a file: equations, gate order, initialisation, reference."""
