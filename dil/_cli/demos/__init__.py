"""Demonstrations that the command line runs. Code that is useful beyond a demonstration belongs in a room of dil."""
