"""What dil asks of a framework (the Protocol of a backend), and what every framework gets from it.

It imports `_base`. The registry also loads backends, by name, when their arrays first appear.
"""
