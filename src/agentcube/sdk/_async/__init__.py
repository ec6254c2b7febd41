"""The async half of the SDK: the one that is written. `_sync` is made from it by tools/async_to_sync.py."""
