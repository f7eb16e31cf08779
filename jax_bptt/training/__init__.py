"""Training by explicit BPTT: data, models, the optax loop. The only place that imports optax."""
