"""What was agreed, what is asked, what it costs, and whether it may run."""
