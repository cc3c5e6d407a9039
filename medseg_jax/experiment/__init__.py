"""From the sections of a config to the objects of a run; below, no config."""
