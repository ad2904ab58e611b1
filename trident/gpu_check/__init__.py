"""What runs on a GPU, checked and measured: `make gpu-check`. Needs no network, and only CUDA builds of torch and torchvision.

`steps` lists the steps in the order in which they run. Each is a process of its own (`one_step`), so that one that crashes or
hangs does not end the others: `gpu_tests`, `training_speed`, `random_models` (bundles with random weights), `model_speed`,
`decoding_speed`, `serving_speed`. `report` collects their rows, and writes them as JSON and Markdown.

With `--device cpu` the same code runs on the CPU. Its figures say nothing about a GPU.
"""
