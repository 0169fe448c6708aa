"""The Protocol that a backend implements, and the code that all backends share: loops, transforms, arguments.

It imports `_base`. The registry also imports backends, by name, when their arrays first appear.
"""
