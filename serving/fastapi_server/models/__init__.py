"""The models of one service process: batching, loading and unloading, and agreement between the processes."""
