"""A procedurally drawn world of short videos with queries and exact segments."""
