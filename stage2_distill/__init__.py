"""Stage 2: train a student from the teacher cache by General Instance Distillation."""

import runpy
from pathlib import Path

# Before any other package of ours is imported by its name, which a folder of the user's may have.
runpy.run_path(str(Path(__file__).parents[1] / "configs" / "collisions.py"))["refuse_shadows"]()
