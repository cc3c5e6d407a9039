"""Files to arrays and back: images and volumes."""
