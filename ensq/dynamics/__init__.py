"""Dynamics checks: does a model that fits forces hold a molecule together, and as the data do?"""
