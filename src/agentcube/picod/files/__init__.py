"""File work, blocking: called in PicoD's worker threads, as the user (fsuid). Nothing here knows HTTP or asyncio.

Everything is done relative to open directories of the workspace (`paths`): programs of the user that
move things and make links meanwhile can spoil a call, but never lead it out.
"""
