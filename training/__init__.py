"""Training: a data set in, a bundle out.

In the order of the data: ``settings``, ``datasets`` (pictures and labels), ``loading`` (augmented, reproducible
batches), ``models``,
``trainer`` -> ``checkpoint``; then ``export`` (checkpoint -> bundle) and ``pretrained`` (published weights -> bundle).
"""
