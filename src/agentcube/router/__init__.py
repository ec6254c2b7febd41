"""The Router: authenticates, finds a session's sandbox, splices bytes. It never decides on life and death."""
