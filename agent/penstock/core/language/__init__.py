"""From YAML text to the parts of a policy, with every mistake at its place; `core.parse` is the front door."""
