"""Data: column tables, file readers, sources, partitions and the embedded utterance set.

``examples`` holds the table every other module passes around, ``readers`` turns one file into
such a table, ``source`` finds the files of a data set, ``partition`` deals rows to simulated
devices, ``docstrings`` reads the default set from the running Python, ``embedded`` is the set that
ships with the project and ``leaks`` compares two splits.
"""
