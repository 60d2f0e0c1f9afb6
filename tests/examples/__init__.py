"""Tests of the example programs, with their default inputs and with custom ones.

The examples run in the test process. The documentation tests run each one from the shell.
"""
