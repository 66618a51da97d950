"""Training: the state, the step, the optimiser, the loop."""
