"""GradBench's `lstm`: the model, its rivals, the protocol, the data and a driver."""
