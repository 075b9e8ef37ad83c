"""`python -m hypergrad_search exploded` prints what to do about the status "exploded", and likewise about errors."""

import sys

from hypergrad_search.trouble import sections

known = sections()
names = sys.argv[1:]
if len(names) != 1 or names[0] not in known:
    sys.exit(f"usage: python -m hypergrad_search NAME, with one of {', '.join(known)}")
print(known[names[0]])
