"""Tasks: each defines its messages, its parsing and its report."""
