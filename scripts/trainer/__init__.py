"""The parts of scripts/train.py: options, text, baselines, checkpoints, reports."""
