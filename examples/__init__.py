"""Parts of the pipeline in code of your own; each file is run by the tests."""
