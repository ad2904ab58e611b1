"""The command line over training, serving and load test.

``commands`` has the flags and their help, ``console`` what the commands do and show. What a command does is imported when
it runs, so that `trident --help` is quick. ``gpu_check`` checks and measures what runs on a GPU (`make gpu-check`).
"""
