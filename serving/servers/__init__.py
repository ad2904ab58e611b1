"""What a supervisor needs of each server: one class a file, behind one interface (``server``)."""
