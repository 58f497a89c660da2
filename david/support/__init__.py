"""Helpers without a subject of the domain: console, signals, files, memory, text."""
