"""Random interruptions of one run."""
