"""Stage 1: plan a teacher cache, and run the teacher once over every planned view.

stage1_dump.plan      annotations -> records with bucket and slot
stage1_dump.prepare   config -> everything that is known before the teacher is loaded
stage1_dump.dump      the job, and the way of the data through it
stage1_dump.status    how far a dump is
"""
