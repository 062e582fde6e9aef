"""What a coupling does to a flow: from the first step on, in fine-tuning, and condition by condition."""
