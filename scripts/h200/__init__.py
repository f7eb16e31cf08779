"""Parts of the check that compiles for an H200 without one."""
