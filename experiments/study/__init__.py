"""Many runs of an experiment, written up as one table, figures and a page."""
