"""The commands: their flags and help. What a command does is imported when it runs."""
