"""Parts of the benchmark on an accelerator: rows, contestants, groups in processes of their own."""
