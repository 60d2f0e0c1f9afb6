"""Run every case with both packages and update the tables of docs/coming-from-apache-beam.md."""

import logging
import warnings

from defects.table import PAGE, update_tables


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # the failures are expected
    PAGE.write_text(update_tables(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
