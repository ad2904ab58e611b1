"""The models of one service process: batching, loading and unloading, and the state that all processes agree on."""
