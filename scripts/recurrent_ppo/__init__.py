"""Recurrent PPO on a task that needs memory: the task, the network, the algorithm, the curves."""
