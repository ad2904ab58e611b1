"""What the commands show on the terminal."""
