"""Router processes beside the one that has everything else: for all cores of one machine.

`link` is what passes between them; `answering` is the main process's end, `remote` the worker's;
`supervisor` starts, watches and replaces workers; `__main__` is a worker.
"""
