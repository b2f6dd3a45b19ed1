"""Stage 2: train a student from the teacher cache by General Instance Distillation."""
