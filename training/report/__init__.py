"""HTML report of a training run: settings, curves, confusion matrix, accuracy per class, wrong predictions."""
