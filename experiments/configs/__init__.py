"""Configurations of the experiments: one frozen dataclass per file."""
