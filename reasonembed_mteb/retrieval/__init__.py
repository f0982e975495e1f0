"""Tables to tasks: data, exclusions and search."""
