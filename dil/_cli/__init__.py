"""The program `dil`: its entry point, its commands, and the demos that it runs.

It imports the public names of dil, and typer, rich and matplotlib of the extra `cli`.
"""
