"""A training run as one HTML file: settings, curves, confusion matrix, accuracy per class, wrong predictions."""
