"""Demonstrations that the command line runs. Code that others can use belongs in another package of dil."""
