"""Check that a custom model handler keeps the contract of ``ModelHandler``."""

from runinference.testing.conformance import Fault, HandlerFaultsError, Report, check_handler

__all__ = ["Fault", "HandlerFaultsError", "Report", "check_handler"]
