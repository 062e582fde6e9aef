"""Experiments on real data: data sets, configurations, the training program and the report of a run."""
