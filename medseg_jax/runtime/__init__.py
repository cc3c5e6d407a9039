"""What every program stands on: errors, files, devices, the process."""
