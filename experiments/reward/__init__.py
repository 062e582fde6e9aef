"""Reward fine-tuning: every method at several strengths, from one base, as a trade between reward and distance."""
