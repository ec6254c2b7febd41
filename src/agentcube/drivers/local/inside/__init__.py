"""What runs between the server and PicoD: the zygote and the birth of a sandbox.

Standard library only, Python 3.9 syntax, no import from outside this package: it is shipped in a zip
to a bare interpreter. It knows nothing of drivers, templates or HTTP; PicoD is a name it is given.
"""
