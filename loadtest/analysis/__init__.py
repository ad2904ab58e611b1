"""From a result to numbers for readers.

``estimate``: values over rounds with confidence intervals. ``summary``: one summary per lane and load, one headline per
lane. ``compare``: two results.
"""
