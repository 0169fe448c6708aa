"""The Protocol that a backend implements, and the code that all backends share: loops, transforms, arguments.

This package imports `_base`. The registry also imports backends, by name, when their arrays first appear.
"""
