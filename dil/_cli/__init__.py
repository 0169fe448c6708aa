"""The program `dil`: its entry point, its commands, and its demos.

It imports the public names of dil, and the packages of the extra `cli`: typer, rich and matplotlib.
"""
