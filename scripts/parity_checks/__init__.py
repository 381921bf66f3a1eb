"""The checks behind ``scripts/parity.py``; ``tests/parity_program.py`` runs them on small data."""
