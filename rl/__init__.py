"""Learning from what the model said: advantages, objectives and the rollouts they need."""
