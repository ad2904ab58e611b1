"""Benchmarks of training. Each reports ratios from one interleaved run.

``speed``: the trainer against ``plain_loop``; the effect of bf16, channels_last and torch.compile (`make bench-training`).
``processor``: this machine's processor and its instructions, for the output.
"""
