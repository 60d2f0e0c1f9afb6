"""Tests for the documentation: all examples are run, and their output is compared with the page."""
