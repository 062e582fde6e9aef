"""What a coupling does to a flow that is trained from the first step with it."""
