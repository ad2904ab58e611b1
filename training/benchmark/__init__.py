"""Benchmarks of training and of lower precisions. Each reports ratios from one interleaved run.

``speed``: the trainer against ``plain_loop``; the effect of bf16, channels_last and torch.compile (`make bench-training`).
``int8``: EfficientNet-Lite0 in int8 against fp32 (`make bench-int8`).
"""
