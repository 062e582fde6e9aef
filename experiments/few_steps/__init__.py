"""Flows that sample in a few evaluations: the methods that are compared, their stages, scores and pictures."""
