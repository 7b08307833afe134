"""A procedurally generated world of short videos with queries and exact segments."""
