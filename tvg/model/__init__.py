"""Loading checkpoints, freezing their parts, and the policy that scores completions."""
