"""Training by explicit BPTT: losses of layers, a loop with optax, tasks, figures on held-out data.

The only place that imports optax.
"""
