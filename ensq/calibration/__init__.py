"""How good an ensemble's spread is as an uncertainty, and factors that make it better.

NumPy and SciPy only: arrays of errors and of standard deviations in, figures with intervals out.
"""
