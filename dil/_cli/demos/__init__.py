"""Demonstrations that the command line runs; what is of use beyond them is library code."""
