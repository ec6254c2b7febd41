"""The sync half of the SDK, made from `_async` by tools/async_to_sync.py. Edit nothing here but `_primitives`."""
