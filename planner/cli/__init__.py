"""The command line: parse, call the library, print."""

import os

# Matrix products of the search are small: threads cost start-up time, and sums would depend on their number.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
