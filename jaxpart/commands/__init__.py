"""The commands of the command line, a module each: its description, its arguments, and `run`.

`run` takes the parsed arguments and gives the exit code. Heavy packages are imported in it, so that
`--help` and a wrong argument are answered at once.
"""
