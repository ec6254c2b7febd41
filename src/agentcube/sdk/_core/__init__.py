"""Requests, answers, errors and configuration of the SDK. Nothing here opens a connection."""
