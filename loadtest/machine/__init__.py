"""The machine: its hardware and software, and what a run used of it."""
