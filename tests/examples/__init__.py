"""What the example programs write, by default and from what they are given.

They run in this process; the tests of their pages run each as a program of its own, from the shell and from
the clipboard.
"""
