"""The work of the commands: each job takes a composed config and runs to its end."""
