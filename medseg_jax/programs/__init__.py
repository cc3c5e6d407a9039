"""What the modes of the command line do, a file each."""
