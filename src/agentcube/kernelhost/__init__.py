"""What runs a Python kernel's cells, in the sandbox, as the user, under the image's or environment's Python.

Standard library only (IPython and matplotlib are used where that Python has them), Python 3.9 syntax.
It speaks with PicoD over one socket (`channel`) and trusts nothing of the code that it runs to be
kind to it; PicoD in turn trusts nothing that comes from here.
"""
