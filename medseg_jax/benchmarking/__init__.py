"""What `--mode=benchmark` measures, and how it is shown."""
