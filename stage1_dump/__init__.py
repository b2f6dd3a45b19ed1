"""Stage 1: plan a teacher cache, and run the teacher once over every planned view.

stage1_dump.plan      annotations -> records with bucket and slot
stage1_dump.prepare   config -> everything that is known before the teacher is loaded
stage1_dump.estimate  what a dump would write: objects, bytes, time
stage1_dump.sizes     the bytes, worked out for every preset and set right by samples
stage1_dump.measure   the time and the samples, from a few batches on this machine
stage1_dump.existing  what lies at CACHE.LOCATION already, and whether it is the planned cache
stage1_dump.dump      the job, and the way of the data through it
stage1_dump.status    how far a dump is
stage1_dump.check     the teacher run again on a sample, compared with what is stored
stage1_dump.evaluate  the teacher's COCO AP, computed from its stored boxes
"""

import runpy
from pathlib import Path

# Before any other package of ours is imported by its name, which a folder of the user's may have.
runpy.run_path(str(Path(__file__).parents[1] / "configs" / "collisions.py"))["refuse_shadows"]()
