"""Whether the observed agreement of two models is significantly below the requested one."""

from __future__ import annotations

from runinference.cascade.bounds import tail_probability


class AgreementCheck:
    """Compare the observed agreement with the requested rate, in consecutive blocks of checks.

    In each block of 1,024 checks, the agreement is tested after 32, 64, 128, and so on. A test warns if an
    agreement this low has a probability of at most 0.001 at the requested rate, so at the
    requested rate, a block has a warning with a probability of at most 0.6 %.

    >>> check = AgreementCheck(0.9)
    >>> warnings = [check.add(agreed=number % 2 == 0) for number in range(32)]
    >>> print(warnings[-1].partition(",")[0])
    The models agree on 16 of the last 32 checked elements (50.0%)

    Args:
        agreement: The requested rate. None for no warnings.
    """

    FIRST, LAST, LEVEL = 32, 1_024, 0.001

    def __init__(self, agreement: float | None) -> None:
        self._agreement = agreement
        self._n = self._n_agreed = 0

    def add(self, agreed: bool) -> str | None:
        """Count a check, and return a warning if the agreement is too low."""
        if self._agreement is None:
            return None
        self._n += 1
        self._n_agreed += agreed
        n, n_agreed, warning = self._n, self._n_agreed, None
        if n >= self.FIRST and n & (n - 1) == 0:
            # At most n_agreed agree: at least n - n_agreed differ.
            p_value = tail_probability(n, n - n_agreed, 1 - self._agreement)
            if p_value <= self.LEVEL:
                warning = (
                    f"The models agree on {n_agreed} of the last {n} checked elements ({n_agreed / n:.1%}), "
                    f"significantly below the requested {self._agreement:.1%} (p = {p_value:.2g}). To fix this, "
                    "learn the threshold again, from a sample of recent elements."
                )
        if n == self.LAST:
            self._n = self._n_agreed = 0
        return warning
