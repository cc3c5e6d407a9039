"""Programs of several trainings."""
