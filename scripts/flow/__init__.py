"""Parts of gradient_flow.py: what is looked at, the page, and a run that is watched."""
