"""What does serving cost? `make bench-overhead`: our FastAPI service against its ceiling and its peers, on one core.

All of them serve the same bundle by the same preprocessing: ``model`` is what each contestant runs. ``ceiling`` is
that in a plain loop; the other modules put it behind a server, configured as that server's documentation recommends.
``closed_loop`` makes the load, ``run`` takes turns and prints the table.
"""
