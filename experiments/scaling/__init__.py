"""Memory and time of a training step on many accelerators: formulas, and what of them can be checked on one machine."""
