"""The command line: one thin file a command; `main` finds them by name and turns errors into one sentence."""
