"""The client: _core builds requests and reads answers, _async is written, _sync is generated from it."""
