"""The command line: parses, calls the SDK, prints. `agentcube.up` is imported only when it is asked for."""
