"""What training and the lower precisions cost and give on this machine: ratios, each from one interleaved run.

``speed``: the trainer against ``plain_loop``, and what bf16, channels_last and torch.compile give (`make bench-training`).
``int8``: EfficientNet-Lite0 in int8 against fp32 (`make bench-int8`).
"""
