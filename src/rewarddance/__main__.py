"""`python -m rewarddance`, which is what `torchrun -m` needs."""

import sys

from rewarddance.apps.cli import main

sys.exit(main())
