"""One machine, one process: every role composed. Here, and in __main__ modules only, parts are concrete."""
