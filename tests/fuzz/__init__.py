"""Fuzzing of everything that reads a file: ``python -m tests.fuzz --count 1000000``.

    kinds     what is read: sound files of each kind, and the readers they are fed to
    damage    to bytes and to JSON; ``programs`` damages pickles by their opcodes
    watch     what no reader may do: import, run, connect, touch other files, hang, take memory
    batches   inputs in child processes, so that a crash is seen and its input kept
    found     inputs that once broke something, which the tests read again

Every input follows from the seed and its number alone.
"""
