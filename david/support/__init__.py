"""What every room may use and no room is about: messages, signals, files, memory, text."""
