"""Trident's front door: the command line over training, serving and load test.

The modules here have the flags and their help; what a command does is imported when it runs, so that `trident --help`
is quick.
"""
